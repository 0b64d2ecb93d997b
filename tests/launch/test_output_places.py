"""Programs write to the named output, also through links, or refuse it before the work."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.system.ports import free_port
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import save_image_tokenizer
from launch.support.composition import compose_program

ROOT = Path(__file__).parents[2]
MARKERS = {
    "draw_shapes": "train/captions.jsonl",
    "hold_out_variants": "train/captions.jsonl",
    "build_shards": "manifest.json",
    "train_text_tokenizer": "text_tokenizer.json",
    "encode_shards": "manifest.json",
}
"""A file of each program's `output_dir`."""
PROGRAMS = tuple(MARKERS)


def run(program: str, *words: str) -> None:
    """Run a program in this process."""
    main = inspect.unwrap(import_module(f"launch.{program}").main)
    main(compose_program(program, words))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the programs' inputs: pairs, image shards and both tokenizers."""
    folder = tmp_path_factory.mktemp("made")
    noise = np.random.default_rng(0)
    (folder / "raw").mkdir()
    lines = []
    for index in range(4):
        pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"raw/{index}.png")
        record = {"image": f"{index}.png", "caption": f"第{index}张红色的圆", "base": "圆"}
        lines.append(json.dumps(record))
    (folder / "raw/captions.jsonl").write_text("\n".join(lines))
    for program, name in (("build_shards", "images"), ("train_text_tokenizer", "text")):
        run(program, *inputs(program, folder), f"output_dir={folder / name}")
    settings = ImageTokenizerConfig(
        image_size=8, codebook_size=8, embedding_size=4, base_channels=4,
        channel_multipliers=(1,), num_residual_blocks=0, patch_size=8, normalization="none",
    )  # fmt: skip
    save_image_tokenizer(VQGAN(settings), folder / "vqgan")
    return folder


def inputs(program: str, made: Path) -> list[str]:
    return {
        "draw_shapes": ["train_scenes=2", "held_out_scenes=2", "unseen_pair_scenes=2"],
        "hold_out_variants": [f"source={made}/raw", "base_key=base"],
        "build_shards": [f"source={made}/raw", "image_size=8"],
        "train_text_tokenizer": [f"shards={made}/images", "vocab_size=300"],
        "encode_shards": [
            f"shards={made}/images",
            f"text_tokenizer_dir={made}/text",
            f"image_tokenizer_dir={made}/vqgan",
        ],
    }[program]


def empty_folder(root: Path) -> str:
    (root / "scratch/out").mkdir()
    return f"{root}/scratch/out"


def link_to_nothing(root: Path) -> str:
    (root / "link").symlink_to(root / "scratch/out")
    return f"{root}/link"


def link_to_an_empty_folder(root: Path) -> str:
    empty_folder(root)
    return link_to_nothing(root)


def link_in_the_middle(root: Path) -> str:
    (root / "link").symlink_to("scratch")
    return f"{root}/link/out"


def dots(root: Path) -> str:
    return f"{root}/scratch/./../scratch/out"


def dots_behind_a_link(root: Path) -> str:
    (root / "scratch/inner").mkdir()
    (root / "link").symlink_to("scratch/inner")
    return f"{root}/link/../out"


def trailing_slash(root: Path) -> str:
    return f"{link_to_nothing(root)}/"


def relative(root: Path) -> str:
    return "scratch/out"


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "place",
    [
        empty_folder,
        link_to_nothing,
        link_to_an_empty_folder,
        link_in_the_middle,
        dots,
        dots_behind_a_link,
        trailing_slash,
        relative,
    ],
)
def test_a_place_is_written_however_it_is_named(
    program: str, place: object, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    value = place(tmp_path)  # type: ignore[operator]
    before = {path.name for path in tmp_path.iterdir()}

    run(program, *inputs(program, made), f"output_dir={value}")

    assert (tmp_path / "scratch/out" / MARKERS[program]).is_file()
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not (tmp_path / "link").exists() or (tmp_path / "link").is_symlink()
    assert {path.name for path in (tmp_path / "scratch").iterdir()} <= {"out", "inner"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_output_behind_a_link_is_replaced_behind_it(
    program: str, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    value = link_to_nothing(tmp_path)
    run(program, *inputs(program, made), f"output_dir={value}")
    (tmp_path / "scratch/out/old").write_text("")

    run(program, *inputs(program, made), f"output_dir={value}", "overwrite=true")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / MARKERS[program]).is_file()
    assert not (tmp_path / "scratch/out/old").exists()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("{tmp}/file/out", "Not a directory", id="a file for the parent"),
        pytest.param("{tmp}/file/a/b/out", "Not a directory", id="a file further up"),
        pytest.param("{tmp}/file", "already exists", id="a file in its place"),
        pytest.param(f"{{tmp}}/{'n' * 250}", "File name too long", id="room for no temporary"),
        pytest.param(f"{{tmp}}/{'n' * 256}/out", "File name too long", id="a long parent"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(
    program: str, value: str, message: str, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")

    with pytest.raises(InputError, match=rf"output_dir=.*{message}"):
        run(program, *inputs(program, made), f"output_dir={value.format(tmp=tmp_path)}")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Mount a tmpfs with the test's options; return its folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is refused here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("mounted", ["ro"], indirect=True)
def test_a_read_only_disk_is_found_before_the_work(program: str, made: Path, mounted: Path) -> None:
    with pytest.raises(InputError, match=r"output_dir=.*/new/out cannot be written: .* read-only"):
        run(program, *inputs(program, made), f"output_dir={mounted}/new/out")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("mounted", ["size=16m"], indirect=True)
def test_a_mount_cannot_be_renamed_onto(program: str, made: Path, mounted: Path) -> None:
    with pytest.raises(InputError, match=r"a disk is mounted there.*name a folder within it"):
        run(program, *inputs(program, made), f"output_dir={mounted}")

    run(program, *inputs(program, made), f"output_dir={mounted}/out")
    assert (mounted / "out" / MARKERS[program]).is_file()


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "draw_shapes"])
@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_inputs_and_outputs_lie_apart(
    program: str, overwrite: str, made: Path, tmp_path: Path
) -> None:
    words = inputs(program, made)
    name, _, place = words[0].partition("=")
    (tmp_path / "link").symlink_to(place)
    for value in (place, f"{place}/out", f"{tmp_path}/link/out"):
        with pytest.raises(InputError, match=f"output_dir={value} lies within {name}={place}"):
            run(program, *words, f"output_dir={value}", f"overwrite={overwrite}")
    with pytest.raises(InputError, match=f"{name}={place} lies within output_dir={made}"):
        run(program, *words, f"output_dir={made}", f"overwrite={overwrite}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_second_program_in_the_same_folder_is_refused_and_disturbs_nothing(
    program: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    hold_at(program, monkeypatch, begun, go_on)
    words = [*inputs(program, made), f"output_dir={tmp_path}/out"]
    first = threading.Thread(target=run, args=(program, *words))
    first.start()
    try:
        assert begun.wait(60)
        monkeypatch.undo()

        with pytest.raises(InputError, match=r"by another process.*: wait for its end"):
            run(program, *words)
    finally:
        go_on.set()
        first.join()

    assert (tmp_path / "out" / MARKERS[program]).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def hold_at(
    program: str, monkeypatch: pytest.MonkeyPatch, begun: threading.Event, go_on: threading.Event
) -> None:
    """Make a program wait in the middle of its work."""
    module_name, name = {
        "draw_shapes": ("data_pipelines.shapes_data_set", "map_in_order"),
        "hold_out_variants": ("data_pipelines.hold_out", "choose_held_out"),
        "build_shards": ("data_pipelines.building.build", "inspect_part"),
        "train_text_tokenizer": ("data_pipelines.captions", "read_captions"),
        "encode_shards": ("data_pipelines.encoding.encode", "_encode_missing"),
    }[program]
    module = import_module(module_name)
    original = getattr(module, name)

    def wait(*arguments: object, **settings: object) -> object:
        begun.set()
        assert go_on.wait(60)
        return original(*arguments, **settings)

    monkeypatch.setattr(module, name, wait)


def test_several_processes_of_a_launcher_are_refused(made: Path, tmp_path: Path) -> None:
    words = [*inputs("build_shards", made), f"output_dir={tmp_path}/out"]
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, f"--master-port={free_port()}", "launch/build_shards.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    sentence = "launch/build_shards.py is one process, and a launcher started 2 of it"
    assert sentence in done.stderr
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["out", "link"])
def test_encoding_works_beside_the_real_folder(place: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch/out")
    real = tmp_path / ("out" if place == "out" else "scratch/out")

    words = [*inputs("encode_shards", made), f"output_dir={tmp_path / place}"]
    run("encode_shards", *words, "num_parts=1", "part_index=0")

    assert (real.parent / f".encoding-{real.name}/records/00000.json").is_file()
    run("encode_shards", *words)
    assert (real / "manifest.json").is_file()
    assert not (real.parent / f".encoding-{real.name}").exists()


def test_a_shard_that_another_process_encodes_is_left_to_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipelines.encoding import token_shard

    begun, go_on = threading.Event(), threading.Event()
    original = token_shard.write_shard

    def wait(*arguments: object, **settings: object) -> object:
        begun.set()
        assert go_on.wait(60)
        return original(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(token_shard, "write_shard", wait)
    words = [*inputs("encode_shards", made), f"output_dir={tmp_path}/out", "num_parts=1"]
    first = threading.Thread(target=run, args=("encode_shards", *words, "part_index=0"))
    first.start()
    try:
        assert begun.wait(60)
        monkeypatch.undo()

        with pytest.raises(InputError, match=r"tokens-00000\.tar is being encoded by another"):
            run("encode_shards", *words, "part_index=0")
        with pytest.raises(InputError, match="out is being written by another process"):
            run("encode_shards", *words)
    finally:
        go_on.set()
        first.join()

    run("encode_shards", *words)
    assert (tmp_path / "out/manifest.json").is_file()


def test_a_run_lies_apart_from_its_shards(made: Path) -> None:
    words = ["image_tokenizer=quickstart", f"shards={made}/images"]

    with pytest.raises(InputError, match=r"run_dir=.*/images/run lies within shards="):
        run("train_image_tokenizer", *words, "image_tokenizer.image_size=8",
            "image_tokenizer.patch_size=8", "image_tokenizer.channel_multipliers=[1]",
            f"run_dir={made}/images/run")  # fmt: skip
