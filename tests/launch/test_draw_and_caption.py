"""The programs that draw pictures and write captions."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.model.weights import CONFIG_NAME, WEIGHTS_NAME, save_weights
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.scenes import all_scenes
from ernie_vilg.text_tokenizer import train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import load_image_tokenizer, save_image_tokenizer
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER
from tests.model.tiny import tiny_model

SCENES = [*all_scenes(1), *all_scenes(2)][::97]
PROMPT = caption_of(SCENES[0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, large enough that every input matters."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    text_config = TrainTextTokenizerConfig(
        shards="unused", output_dir="unused", vocab_size=512, max_piece_length=4
    )
    model = train_text_tokenizer((caption_of(scene) for scene in SCENES), text_config)
    text_tokenizer = write_text_tokenizer(folder / "text_tokenizer", model, {})
    image_config = ImageTokenizerConfig(
        image_size=64, codebook_size=8, embedding_size=4, base_channels=8, patch_size=16,
        channel_multipliers=(1,), num_residual_blocks=0, normalization="channel",
    )  # fmt: skip
    save_image_tokenizer(VQGAN(image_config), folder / "image_tokenizer")
    config = ModelConfig(
        hidden_size=16, num_layers=2, num_heads=2, text_vocab_size=text_tokenizer.vocab_size,
        text_length=12, codebook_size=8, image_grid_size=4, initializer_std=0.3,
    )  # fmt: skip
    save_weights(folder, config, tiny_model(config).state_dict(), {"step": 1})
    return folder


def run(program: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(CONF_FOLDER.parent / f"launch/{program}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_recorded_seed_draws_its_picture_again(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes(f"\ufeff{PROMPT}\r\n\r\n{PROMPT}\u200b\r\n".encode())
    first = run("generate", f"weights={weights}", f"prompts_file={tmp_path}/prompts",
                "images_per_prompt=2", f"output_dir={tmp_path}/first")  # fmt: skip
    assert first.returncode == 0, first.stderr
    drawn = records(tmp_path / "first/generations.jsonl")
    pictures = {(tmp_path / "first" / item["file"]).read_bytes() for item in drawn}
    assert len(pictures) == 4
    assert {item["prompt"] for item in drawn} == {PROMPT}

    item = drawn[3]
    again = run("generate", f"weights={weights}", f"prompts=['{item['prompt']}']",
                f"seed={item['seed']}", "temperature=1",
                f"output_dir={tmp_path}/again")  # fmt: skip
    assert again.returncode == 0, again.stderr
    expected = (tmp_path / "first" / item["file"]).read_bytes()
    assert (tmp_path / "again/0_0.png").read_bytes() == expected


def test_a_picture_is_the_same_in_every_company(weights: Path) -> None:
    model = ErnieVilg.from_pretrained(weights)
    prompts = [caption_of(scene) for scene in SCENES[:11]]
    alone = [model.generate([prompt], temperature=1.0, seed=3)[0] for prompt in prompts]
    for batch_size in (1, 3, 8, 64):
        drawn = model.generate(prompts[::-1], temperature=1.0, seed=3, batch_size=batch_size)[::-1]
        for one, other in zip(alone, drawn, strict=True):
            assert one.codes.equal(other.codes)
            assert one.log_probability == other.log_probability
            assert one.image.tobytes() == other.image.tobytes()


def test_equal_pictures_get_captions_of_their_own_in_every_batch(weights: Path) -> None:
    model, image = ErnieVilg.from_pretrained(weights), draw_scene(SCENES[0])

    written = [
        model.caption([image] * 8, temperature=3.0, seed=1, batch_size=size) for size in (3, 4, 8)
    ]

    assert len({item.caption for item in written[0]}) == 8
    assert written[0] == written[1] == written[2]
    assert model.caption([image], temperature=3.0, seed=written[0][5].seed) == [written[0][5]]


def test_a_turned_picture_is_captioned_as_its_exif_says(weights: Path, tmp_path: Path) -> None:
    model = ErnieVilg.from_pretrained(weights)
    upright = draw_scene(SCENES[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)

    with Image.open(tmp_path / "turned.png") as turned:
        assert model.encode_images([turned]).equal(model.encode_images([upright]))


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "auto", torch.float32),
        ("cpu", "bf16", torch.bfloat16),
        pytest.param("cuda", "auto", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda:0", "fp32", torch.float32, marks=pytest.mark.gpu),
    ],
)
def test_the_transformer_has_the_chosen_precision_and_the_tokenizer_float32(
    weights: Path, device: str, precision: str, expected: torch.dtype
) -> None:
    model = ErnieVilg.from_pretrained(weights, device, precision)

    assert {part.dtype for part in model.transformer.parameters()} == {expected}
    assert {part.dtype for part in model.image_tokenizer.parameters()} == {torch.float32}
    parts = (*model.transformer.parameters(), *model.transformer.buffers())
    assert {part.device.type for part in parts} == {torch.device(device).type}
    (drawn,) = model.generate([PROMPT])
    (written,) = model.caption([drawn.image])
    assert written.log_probability < 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has the GPU")
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("generate", (f"prompts=[{PROMPT}]", "output_dir={out}")),
        ("caption", ("images={image}", "output={out}")),
        ("evaluate", ("pairs=unused", "output_dir={out}")),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_in_one_sentence(
    weights: Path, tmp_path: Path, program: str, words: tuple[str, ...]
) -> None:
    draw_scene(SCENES[0]).save(tmp_path / "picture.png")
    names = {"out": tmp_path / "out", "image": tmp_path / "picture.png"}
    main = inspect.unwrap(import_module(f"launch.{program}").main)
    settings = [word.format(**names) for word in words]
    config = compose_program(program, [f"weights={weights}", "device=cuda", *settings])

    with pytest.raises(InputError, match=r"^device=cuda but torch finds no GPU: set device=cpu or"):
        main(config)


def test_a_cut_prompt_is_told(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    (drawn,) = ErnieVilg.from_pretrained(weights).generate([PROMPT * 3])

    assert "prompt 0 has" in caplog.text
    assert drawn.prompt == PROMPT * 3
    assert len(drawn.drawn_prompt) < len(PROMPT * 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"caption": null}\n', "caption is no text", id="null"),
        pytest.param("\u7ea2".encode("gbk") + b"\n", "prompts line 1 is not UTF-8", id="GBK"),
        pytest.param(b"\xef\xbb\xbf\r\n", "is empty", id="only a mark"),
    ],
)
def test_a_wrong_prompts_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "prompts").write_bytes(content)

    done = run("generate", "weights=x", f"prompts_file={tmp_path}/prompts", "output_dir=y")

    assert done.returncode == 2
    assert message in done.stderr


def test_output_that_cannot_be_written_is_found_before_the_weights(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    drawn = run("generate", "weights=x", "prompts=[red]", f"output_dir={tmp_path}/file")
    (tmp_path / "picture.png").touch()
    told = run("caption", "weights=x", f"images={tmp_path}/picture.png", f"output={tmp_path}")

    assert (drawn.returncode, told.returncode) == (2, 2)
    assert "output_dir=" in drawn.stderr
    assert "cannot be written" in told.stderr


def test_no_picture_of_an_earlier_call_stays(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "7_3.png").touch()
    (tmp_path / "notes.png").touch()

    done = run("generate", f"weights={weights}", "prompts=[red]", f"output_dir={tmp_path}")

    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"0_0.png", "generations.jsonl", "notes.png"}


def test_bad_pictures_and_odd_names_cost_no_caption(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    odd = os.fsdecode("\u7ea2.png".encode("gbk"))
    for name in ("a[1].png", odd):
        draw_scene(SCENES[0]).save(os.path.join(folder, name), format="png")
    (folder / "bad.png").write_bytes(b"no picture")

    done = run("caption", f"weights={weights}", f"images={folder}/*.png", f"output={tmp_path}/o")

    assert done.returncode == 2
    assert "1 of 3 pictures have no caption" in done.stderr
    assert "bad.png" in done.stderr
    assert len(records(tmp_path / "o")) == 2
    shutil.copy(folder / "bad.png", folder / "a1.png")  # a file that the pattern would match
    one = run(
        "caption", f"weights={weights}", f"images='{folder}/a[1].png'", f"output={tmp_path}/p"
    )
    assert one.returncode == 0, one.stderr
    assert [item["image"] for item in records(tmp_path / "p")] == [f"{folder}/a[1].png"]


def test_equal_pictures_in_two_batches_of_the_program_get_captions_of_their_own(
    weights: Path, tmp_path: Path
) -> None:
    for index in range(8):
        draw_scene(SCENES[0]).save(tmp_path / f"{index}.png")

    done = run("caption", f"weights={weights}", f"images={tmp_path}/*.png", "batch_size=4",
               "temperature=3", f"output={tmp_path}/captions")  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert len({item["caption"] for item in records(tmp_path / "captions")}) == 8


def test_the_seed_of_a_picture_given_back_draws_it_again(weights: Path) -> None:
    model = ErnieVilg.from_pretrained(weights)
    drawn = model.generate([PROMPT], images_per_prompt=2, temperature=1.0, seed=3)

    for item in drawn:
        (again,) = model.generate([PROMPT], temperature=1.0, seed=item.seed)
        assert again.codes.equal(item.codes)


def test_a_picture_whose_name_is_a_pattern_is_found(tmp_path: Path) -> None:
    draw_scene(SCENES[0]).save(tmp_path / "a[1].png")

    done = run(
        "caption", "weights=x", f"images='{tmp_path}/a[1].png'", f"output={tmp_path}/captions"
    )

    assert "x is no weights folder" in done.stderr


def words_of(program: str, weights: Path, folder: Path) -> list[str]:
    """Return settings of three prompts or pictures, one per batch."""
    common = [f"weights={weights}", "batch_size=1"]
    if program == "generate":
        return [*common, "prompts=[red,blue,green]", f"output_dir={folder}/out"]
    (folder / "in").mkdir()
    for index, scene in enumerate(SCENES[:3]):
        draw_scene(scene).save(folder / f"in/{index}.png")
    return [*common, f"images={folder}/in/*.png", f"output={folder}/out/captions.jsonl"]


@pytest.mark.parametrize("program", ["generate", "caption"])
def test_a_second_call_with_the_same_output_is_refused_before_its_work(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = inspect.unwrap(import_module(f"launch.{program}").main)
    config = compose_program(program, words_of(program, tmp_path, tmp_path))
    begun = []

    def work(*_: Any) -> Any:
        begun.append(program)
        if len(begun) == 1:
            main(config)
        raise ZeroDivisionError

    monkeypatch.setattr(ErnieVilg, "from_pretrained", work)
    with pytest.raises(InputError, match=r"another process is writing .*: wait for its end"):
        main(config)
    assert begun == [program]


KILLED_AT_THE_THIRD = """
import os, runpy, signal, sys
from PIL import Image
places = {"generate": (Image.Image, "save"), "caption": (Image, "open")}
holder, name = places[sys.argv[1]]
original, calls = getattr(holder, name), []
def count(*arguments, **settings):
    calls.append(name)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **settings)
setattr(holder, name, count)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "name"), [("generate", "generations.jsonl"), ("caption", "captions.jsonl")]
)
def test_a_kill_halfway_keeps_what_was_done_and_stops_no_next_call(
    program: str, name: str, weights: Path, tmp_path: Path
) -> None:
    words = words_of(program, weights, tmp_path)
    path = str(CONF_FOLDER.parent / f"launch/{program}.py")
    command = [sys.executable, "-c", KILLED_AT_THE_THIRD, program, path, *words]
    done = subprocess.run(command, cwd=CONF_FOLDER.parent, capture_output=True, text=True)

    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = records(tmp_path / "out" / name)
    assert 1 <= len(kept) <= 2
    again = run(program, *words)
    assert again.returncode == 0, again.stderr
    whole = records(tmp_path / "out" / name)
    assert len(whole) == 3
    assert whole[: len(kept)] == kept


def edited(folder: Path, **model: Any) -> None:
    content = json.loads((folder / CONFIG_NAME).read_text())
    content["model"].update(model)
    (folder / CONFIG_NAME).write_text(json.dumps(content))


def damage(kind: str, folder: Path) -> None:
    if kind == "heads":
        edited(folder, num_heads=4)
    elif kind == "list":
        (folder / CONFIG_NAME).write_text("[1]")
    elif kind in ("text_tokenizer", "image_tokenizer"):
        (folder / kind / f"{kind}.json").write_text("{}")
    else:
        tensors = load_file(folder / WEIGHTS_NAME)
        config = ErnieVilg.from_pretrained(folder).config
        name = "0.begin_of_image"
        if kind == "nan":
            tensors[name][3] = float("nan")
        elif kind == "shape":
            tensors[name] = tensors[name][:3].clone()
        else:
            tensors["other"] = tensors.pop(name)
        save_weights(folder, config, tensors, {})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("heads", "differs from its own SHA-256"),
        ("list", "an object belongs"),
        ("text_tokenizer", "differs from the SHA-256"),
        ("image_tokenizer", "differs from the SHA-256"),
        ("nan", "NaN"),
        ("shape", r"\[3\] where floats \[16\]"),
        ("name", "0.begin_of_image, other"),
    ],
)
def test_damaged_weights_are_refused(
    weights: Path, tmp_path: Path, kind: str, message: str
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    damage(kind, folder)

    with pytest.raises(InputError, match=message):
        ErnieVilg.from_pretrained(folder)


def test_image_tokenizer_with_nan_is_refused(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    model = ErnieVilg.from_pretrained(folder).image_tokenizer
    with torch.no_grad():
        weight = next(model.parameters())
        weight[(0,) * weight.dim()] = float("nan")
    save_image_tokenizer(model, folder / "image_tokenizer")

    with pytest.raises(InputError, match="NaN"):
        load_image_tokenizer(folder / "image_tokenizer")
