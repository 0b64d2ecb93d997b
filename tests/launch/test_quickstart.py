"""The whole quickstart in miniature: every program and its outputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.support.program import CONF_FOLDER

_MINIATURE = {
    "draw_shapes": ["train_scenes=256", "held_out_scenes=8", "unseen_pair_scenes=8"],
    "train_image_tokenizer": [
        "training.steps=20", "checkpoint.every=10", "reconstructions.pictures=16",
        "optimizer.warmup_steps=2",
    ],
    "pretrain": [
        "training.steps=8", "checkpoint.every=4", "training.log_every=2",
        "optimizer.warmup_steps=2", "samples.every=4",
    ],
    "evaluate": ["count=8"],
}  # fmt: skip


def run_miniature(folder: Path) -> str:
    overrides = [f"job.overrides.{stage}={json.dumps(it)}" for stage, it in _MINIATURE.items()]
    done = subprocess.run(
        [
            sys.executable,
            "launch/main_job.py",
            "job=quickstart",
            f"job.output_dir={folder}",
            *overrides,
        ],
        cwd=CONF_FOLDER.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_miniature_leaves_everything_behind_and_is_skipped_the_second_time(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"

    run_miniature(folder)

    metrics = json.loads((folder / "metrics.json").read_text())
    assert all(stage["seconds"] > 0 for stage in metrics["stages"].values())
    assert 0 < metrics["peak_memory_bytes"] < 6 * 2**30
    assert 0 <= metrics["text_to_image"]["objects_correct"] <= 1
    assert 0 <= metrics["image_to_text"]["captions_correct"] <= 1
    assert metrics["image_tokenizer"]["psnr"] > 5
    assert 0 < metrics["image_tokenizer"]["codebook_usage"] <= 1
    assert (folder / "weights/config.json").is_file()
    assert (folder / "held_out/captions.jsonl").is_file()
    assert len(list((folder / "held_out/images").glob("*.png"))) == 8
    assert len(list((folder / "generated").glob("*_0.png"))) == 8
    assert len((folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()) == 8
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'alt="Pictures of step (\d+)', page) == ["0", "4", "8"]

    again = run_miniature(folder)

    assert again.count("skipped") == len(metrics["stages"])
