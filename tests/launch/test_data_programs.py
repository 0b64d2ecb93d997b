"""The data programs, started by their command lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import save_image_tokenizer
from tests.child_time import seconds_of_children

ROOT = Path(__file__).parents[2]


def run(program: str, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"launch/{program}.py", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_well(program: str, *settings: str) -> str:
    result = run(program, *settings)
    assert result.returncode == 0, result.stderr
    return result.stdout


def draw_shapes(folder: Path, count: int) -> None:
    few = ("held_out_scenes=5", "unseen_pair_scenes=5")
    run_well("draw_shapes", f"output_dir={folder}/raw", f"train_scenes={count}", *few)


def test_from_scenes_to_token_shards(tmp_path: Path) -> None:
    draw_shapes(tmp_path, 40)
    built = run_well(
        "build_shards",
        f"source={tmp_path}/raw/train",
        f"output_dir={tmp_path}/images",
        "image_size=64",
        "samples_per_shard=25",
    )
    run_well(
        "train_text_tokenizer",
        f"shards={tmp_path}/images",
        f"output_dir={tmp_path}/text",
        "vocab_size=315",
        "model_type=bpe",
        "max_piece_length=6",
    )
    settings = ImageTokenizerConfig(
        image_size=64, codebook_size=8, embedding_size=4, base_channels=4,
        channel_multipliers=(1,), num_residual_blocks=0, patch_size=8, normalization="none",
    )  # fmt: skip
    save_image_tokenizer(VQGAN(settings), tmp_path / "vqgan")
    run_well(
        "encode_shards",
        f"shards={tmp_path}/images",
        f"text_tokenizer_dir={tmp_path}/text",
        f"image_tokenizer_dir={tmp_path}/vqgan",
        f"output_dir={tmp_path}/tokens",
    )

    assert "40 samples in 2 shards" in built
    manifest = read_manifest(tmp_path / "tokens", "token")
    assert [shard.samples for shard in manifest.shards] == [25, 15]
    assert manifest.settings["grid_size"] == 8
    assert manifest.lineage["text_tokenizer"] == TextTokenizer.load(tmp_path / "text").sha256


@pytest.mark.parametrize(
    ("program", "settings", "message"),
    [
        pytest.param("draw_shapes", ["output_dri=x"], "output_dri", id="mistyped key"),
        pytest.param("draw_shapes", [], "output_dir", id="required key missing"),
        pytest.param(
            "draw_shapes", ["output_dir=x", "seed=zero"], "seed", id="a word for a number"
        ),
        pytest.param(
            "build_shards",
            ["source=x", "output_dir=y", "image_size=64", "image_format=gif"],
            "image_format=gif: choose png or jpeg",
            id="unknown image format",
        ),
        pytest.param(
            "build_shards",
            ["source=/nonexistent", "output_dir={tmp}/y", "image_size=64"],
            "source=/nonexistent does not exist",
            id="no source",
        ),
        pytest.param(
            "train_text_tokenizer",
            ["shards=x", "output_dir=y", "vocab_size=100"],
            "vocab_size=100: must be above 260",
            id="vocabulary without room",
        ),
        pytest.param(
            "train_text_tokenizer",
            ["shards=/nonexistent", "output_dir={tmp}/y"],
            "/nonexistent has no manifest.json",
            id="no image shards",
        ),
        pytest.param(
            "encode_shards",
            [
                "shards=x",
                "text_tokenizer_dir=x",
                "image_tokenizer_dir=x",
                "output_dir=y",
                "batch_size=0",
            ],
            "batch_size=0: must be at least 1",
            id="empty batches",
        ),
    ],
)
def test_a_wrong_setting_is_named_within_ten_seconds_of_work(
    tmp_path: Path, program: str, settings: list[str], message: str
) -> None:
    start = seconds_of_children()

    result = run(program, *(setting.format(tmp=tmp_path) for setting in settings))

    assert seconds_of_children() - start < 10
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_an_editor_adds_is_no_rejection_and_enlarging_is_told(tmp_path: Path) -> None:
    draw_shapes(tmp_path, 5)
    captions = tmp_path / "raw" / "train" / "captions.jsonl"
    lines = captions.read_text(encoding="utf-8").splitlines()
    captions.write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")

    result = run(
        "build_shards",
        f"source={tmp_path}/raw/train",
        f"output_dir={tmp_path}/images",
        "image_size=65",
    )

    assert result.returncode == 0, result.stderr
    assert "5 samples in 1 shards" in result.stdout
    assert "rejected" not in result.stdout
    assert "enlarged pictures, smaller than 65 pixels: 5" in result.stdout
    assert "5 of 5 pictures are smaller than image_size=65 and were enlarged" in result.stderr


def test_rejected_lines_are_told(tmp_path: Path) -> None:
    draw_shapes(tmp_path, 40)
    captions = tmp_path / "raw" / "train" / "captions.jsonl"
    lines = captions.read_text(encoding="utf-8").splitlines()
    lines[0] = json.dumps({"image": "images/99.png", "caption": "x"})
    captions.write_text("\n".join(lines), encoding="utf-8")

    told = run_well(
        "build_shards",
        f"source={tmp_path}/raw/train",
        f"output_dir={tmp_path}/images",
        "image_size=64",
    )

    assert "39 samples in 1 shards" in told
    assert told.splitlines()[1:] == [
        "               source",
        "rows               40",
        "kept               39",
        "missing_image       1",
        f"rejected rows are listed in {tmp_path}/images/rejected.jsonl",
    ]
