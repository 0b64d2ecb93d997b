"""The planner: its table, files, line to paste, past runs, and refusals."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.planning.calibration import Correction
from ernie_vilg.planning.history import RunRecord, deciding_settings, write_record
from ernie_vilg.planning.plan import plan
from launch import plan as program
from launch.support.composition import compose_program

WORDS = ["experiment=base_300m", "num_gpus=8", "gpu=h100-80gb"]


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[str, str, int]:
    """Run the program in this process; return its output and exit code."""
    monkeypatch.setattr(sys, "argv", ["launch/plan.py", *words])
    code = 0
    try:
        program.main()
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return printed.out, printed.err, code


def test_a_plan_is_a_table_a_file_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _, code = run(monkeypatch, capsys, *WORDS, f"plan_dir={tmp_path}", "top=3")

    assert code == 0
    assert "8 x NVIDIA H100 80GB HBM3" in text
    assert "ZeRO 2 or 3 under a pipeline; such as: " in text
    assert text.startswith("length: 150,016,000 pairs in 146,500 steps, by training.steps=146500")
    assert "\nbest: 150,016,000 pairs in 52 hours, " in text
    content = json.loads((tmp_path / "plan.json").read_text())
    layouts = content["layouts"]
    assert len(layouts) == 3
    assert content["length"]["epochs"] == pytest.approx(10, rel=0.001)
    speeds = [layout["tokens_per_second"] for layout in layouts]
    assert speeds == sorted(speeds, reverse=True)
    for layout in layouts:
        assert layout["memory_bytes"]["total"] <= 0.95 * content["gpu"]["memory_bytes"]
        assert layout["seconds_per_step"] == pytest.approx(sum(layout["parts"].values()))
    assert all(refusal["layout"] and refusal["fix"] for refusal in content["refused"])
    assert "set parallelism.zero_stage=1" in text
    assert set(content["scaling"]) == {"8", "16", "32", "64", "128", "256", "512", "1024"}
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.size[0] > 500


def test_hours_and_cost_follow_the_length() -> None:
    steps = 146_500
    whole = plan(planned(), Correction(), top=1).best[0]
    half = plan(planned(f"training.steps={steps // 2}"), Correction(), top=1).best[0]
    by_pairs = plan(planned(f"num_pairs={steps * 1024 // 4}"), Correction(), top=1).best[0]

    assert half.hours == pytest.approx(whole.hours / 2)
    assert by_pairs.hours == pytest.approx(whole.hours / 4)
    assert by_pairs.dollars == pytest.approx(whole.dollars / 4)


def test_the_line_to_paste_is_the_best_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _, _ = run(monkeypatch, capsys, *WORDS, f"plan_dir={tmp_path}", "apply=true")

    (line,) = text.splitlines()
    config = compose_program("pretrain", ["experiment=base_300m", *line.split()])
    best = plan(planned(), Correction(), top=1).best[0]
    assert to_parallelism(config) == asdict(best.run.parallelism)
    assert list(tmp_path.iterdir()) == []


def to_parallelism(config: object) -> dict[str, object]:
    return asdict(config.parallelism)  # type: ignore[attr-defined]


def planned(*words: str) -> PlanConfig:
    config = compose_program("plan", [*WORDS, *words])
    assert isinstance(config, PlanConfig)
    return config


def test_past_runs_correct_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    best = plan(planned(), Correction(), top=1).best[0]
    record = RunRecord(
        hardware="NVIDIA H100 80GB HBM3",
        world_size=8,
        settings=deciding_settings(best.run, "bfloat16"),
        peak_memory_bytes=round(1.5 * best.memory.allocated),
        seconds_per_step=2 * best.step.total,
        parts={},
    )
    for name, hardware in (("same", record.hardware), ("other", "NVIDIA A100-SXM4-80GB")):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, RunRecord(**{**asdict(record), "hardware": hardware}))
    history = f"history=[{tmp_path}/same,{tmp_path}/other]"

    text, _, code = run(monkeypatch, capsys, *WORDS, f"plan_dir={tmp_path}/plan", "top=1", history)

    assert code == 0
    assert "1 past runs: mean error of seconds 50.0%, 0.0% after correction" in text
    assert "of memory 33.3%, 0.0%" in text
    assert "other: ran on NVIDIA A100-SXM4-80GB, not NVIDIA H100 80GB HBM3: not used" in text
    content = json.loads((tmp_path / "plan/plan.json").read_text())
    assert content["layouts"][0]["seconds_per_step"] > 1.5 * best.step.total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 0}, "measured.json: world_size=0"),
        ({"world_size": 3}, "no multiple of"),
        ({"peak_memory_bytes": -5}, "peak_memory_bytes=-5: must be at least 1"),
        ({"seconds_per_step": 0}, "seconds_per_step=0"),
        ({"settings": {}}, "settings has no model"),
        ({"precision": "bfloat16x"}, "settings.precision is 'bfloat16x'"),
        ({"precision": 5}, "settings.precision is 5"),
        ({"num_workers": "2"}, "settings.num_workers is '2'"),
        ({"parallelism": 5}, "settings.parallelism is 5 where an object belongs"),
        ({"objective": {"x": 1}}, "settings.objective has x"),
        ({"ema_decay": 2}, "ema_decay=2"),
    ],
    ids=str,
)
def test_a_damaged_measurement_is_one_message(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record: dict[str, Any] = {
        "hardware": "NVIDIA H100 80GB HBM3", "world_size": 8, "peak_memory_bytes": 10**9,
        "seconds_per_step": 0.5, "parts": {}, "settings": deciding_settings(planned(), "bfloat16"),
    }  # fmt: skip
    for name, value in changes.items():
        holder = record if name in record else record["settings"]
        holder[name] = value
    (tmp_path / "measured.json").write_text(json.dumps(record))

    _, errors, code = run(monkeypatch, capsys, *WORDS, f"history=[{tmp_path}]")

    assert code == 2
    assert message in errors
    assert str(tmp_path) in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_gpus=12"], "does not fill machines of gpu.gpus_per_node=8: set num_gpus=8 or 16"),
        (["num_gpus=0"], "num_gpus=0: must be at least 1"),
        (["gpu=h100-80gb", "gpu.matrix_efficiency=2"], "must be above 0 and at most 1"),
        (["memory_margin=1"], "memory_margin=1.0: must be at least 0 and below 1"),
        (["history=[/nowhere]"], "history=/nowhere is not a folder"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, errors, code = run(monkeypatch, capsys, *WORDS, *words)

    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
    assert text == ""


def test_too_few_gpus_say_how_many_are_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=base_300m", "gpu=h100-80gb", "gpu.host_memory_bytes=1e9"]
    words.append("gpu.memory_bytes=3.6e9")

    _, errors, code = run(monkeypatch, capsys, "num_gpus=1", *words)

    assert code == 2
    assert "no layout fits (" in errors
    assert "is enough" in errors
    enough = int(errors.partition("num_gpus=")[2].partition("num_gpus=")[2].split()[0])
    assert enough not in (1, 2, 4, 8)  # not the next power of two: the least
    for num_gpus in range(1, enough):
        assert not plan(planned(*words, f"num_gpus={num_gpus}"), Correction(), top=1).best
    assert plan(planned(*words, f"num_gpus={enough}"), Correction(), top=1).best
