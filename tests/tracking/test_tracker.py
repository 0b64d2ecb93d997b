"""Metrics are always written, and W&B is given only what it may have."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.cluster import SlurmConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import tracked_settings
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.tracking.tracker import RunTracker, keep_metrics_until
from tests.training.runs import tiny_run


def config_with(folder: Path) -> PretrainConfig:
    (folder / "run").mkdir(exist_ok=True)
    return replace(tiny_run(folder, steps=2), tracking=TrackingConfig(wandb_mode="disabled"))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_metrics_file_holds_a_line_per_call(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path), step=0)
    tracker.log(10, {"loss": 2.5})
    tracker.log(20, {"loss_by_image_row": [1.0, None]})
    tracker.close()

    assert lines_of(tmp_path) == [
        {"step": 10, "loss": 2.5},
        {"step": 20, "loss_by_image_row": [1.0, None]},
    ]


def test_nan_and_infinity_are_null_and_the_line_is_json(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path), step=0)
    tracker.log(10, {"loss": float("nan"), "rows": [float("inf"), 1.0]})
    tracker.close()

    assert lines_of(tmp_path) == [{"step": 10, "loss": None, "rows": [None, 1.0]}]


def test_pictures_are_named_with_their_captions(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path), step=0)
    path = tmp_path / "run" / "samples" / "step_00000010.png"
    tracker.log_pictures(10, {"samples": path}, {"samples": "1. 红色 | 蓝色"})
    tracker.close()

    picture = {"file": "samples/step_00000010.png", "caption": "1. 红色 | 蓝色"}
    assert lines_of(tmp_path) == [{"step": 10, "pictures": {"samples": picture}}]


def test_rolled_back_steps_and_a_truncated_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"step": 4')

    keep_metrics_until(path, 20)

    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


def test_a_caption_with_foreign_line_ends_is_kept_whole(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path), step=0)
    path = tmp_path / "run" / "samples" / "step_00000010.png"
    captions = {
        f"samples/{index}": f"1. 红{mark}色" for index, mark in enumerate("\u2028\u2029\x85")
    }
    tracker.log_pictures(10, dict.fromkeys(captions, path), captions)
    tracker.close()
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = metrics.read_bytes()

    keep_metrics_until(metrics, 20)

    assert metrics.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "null", "5", "[1]", "{}", '{"step": null}', '{"step": "10"}', "{\"step\": [10]}",
        "[" * 100_000, '{"step": ' + "9" * 5000 + "}", '{"step": 10, "a": "\\ud83d"}', "no JSON",
    ],
    ids=lambda line: line[:20],
)  # fmt: skip
def test_a_line_without_a_step_ends_no_start_and_is_not_dropped(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 10}}\n{line}\n{{"step": 20}}\n{{"step": 30}}\n')

    keep_metrics_until(path, 20)

    assert path.read_text() == f'{{"step": 10}}\n{line}\n{{"step": 20}}\n'
    (warning,) = caplog.messages
    assert f"{path} line 2" in warning


def test_repeated_steps_have_one_line(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path), step=0)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 9.0})
    tracker.go_back(1)
    tracker.log(2, {"loss": 2.0})
    tracker.close()

    assert lines_of(tmp_path) == [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 2.0}]


def test_no_path_is_sent(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=2)
    config = replace(
        config,
        samples=replace(config.samples, every=1, pairs=str(tmp_path / "pairs")),
        health=replace(config.health, every=1, pairs=str(tmp_path / "pairs")),
        data=replace(config.data, text_tokenizer=str(tmp_path), image_tokenizer=str(tmp_path)),
        cluster=replace(
            config.cluster,
            environment={"NCCL_TOPO_FILE": str(tmp_path)},
            slurm=SlurmConfig(container=str(tmp_path / "image.sif"), account="who-pays"),
        ),
    )

    settings = tracked_settings(config)

    assert str(tmp_path) not in json.dumps(settings)
    assert "who-pays" not in json.dumps(settings)
    assert set(settings) == {
        "checkpoint",
        "cluster",
        "compile_blocks",
        "data",
        "gpu",
        "guards",
        "linear_precision",
        "model",
        "objective",
        "optimizer",
        "parallelism",
        "precision",
        "stopping",
        "training",
        "watch",
    }
    assert settings["cluster"] == {
        "collective_timeout_seconds": 300,
        "rendezvous_timeout_seconds": 120,
    }
    assert settings["model"]["hidden_size"] == 16
    assert settings["data"] == {"seed": 0, "shuffle_block_shards": 2, "weigh_by": "samples"}
