"""The fire drill: its runs, its report, and its failures."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.drill import DrillConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import ParameterGroupConfig
from ernie_vilg.preparation.lineage import check_lineage
from ernie_vilg.preparation.truncation import check_truncation
from ernie_vilg.runs.phases import Phase
from launch import drill
from launch.drills import catalogue as drills
from launch.drills import test_bed
from launch.drills.catalogue import DrillFailedError, Finding
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, TEXT_VOCAB_SIZE, make_data_set
from launch.drills.faults import Fault, FaultyPhases
from launch.support.program import CONF_FOLDER
from tests.training.runs import tiny_run


def run_program(name: str, *words: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, f"launch/{name}.py", "experiment=quickstart", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=CONF_FOLDER.parent,
        timeout=seconds,
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_survives_its_faults(tmp_path: Path) -> None:
    names = ["sigterm_save", "sigkill_rank", "flipped_bit", "other_tensor_parallel_size"]

    done = run_program(
        "drill", f"drill_dir={tmp_path}/drill", f"drills={'+'.join(names)}", seconds=600
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 drills passed" in done.stdout
    report = json.loads((tmp_path / "drill/drill.json").read_text())
    assert report["passed"]
    assert [found["name"] for found in report["drills"]] == names
    assert all(found["recovery_seconds"] for found in report["drills"][:2])


@pytest.mark.slow
@pytest.mark.distributed
def test_a_soaked_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    done = run_program("soak", f"drill_dir={tmp_path}/soak", "minutes=1", seconds=900)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    report = json.loads((tmp_path / "soak/soak.json").read_text())
    assert report["passed"]
    assert sum(report["faults"].values()) > 0


def test_first_shards_of_large_data_are_drilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_bed, "_MOST_SHARDS", 2)
    own = make_data_set(tmp_path / "own", num_pairs=30)  # 3 shards
    data = PretrainDataConfig(
        token_shards=str(own.token_shards),
        text_tokenizer=str(own.text_tokenizer),
        image_tokenizer=str(own.image_tokenizer),
    )
    model = ModelConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        text_length=16,
        text_vocab_size=TEXT_VOCAB_SIZE,
        codebook_size=CODEBOOK_SIZE,
        image_grid_size=GRID_SIZE,
    )

    run = replace(tiny_run(tmp_path, steps=1), data=data, model=model)
    settings = DrillConfig(**{field.name: getattr(run, field.name) for field in fields(run)})

    config, _ = test_bed.prepare(settings, tmp_path / "drilled")
    lineage = check_lineage(config.data, config.model)

    assert [source.manifest.num_samples for source in lineage.data_sets] == [20]
    assert "unknown how many captions" in check_truncation(config, lineage)["main"]


def test_one_failed_drill_fails_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def survives(bed: object, name: str) -> Finding:
        return Finding(recovery_seconds=2.5, held="all of it")

    def breaks(bed: object, name: str) -> Finding:
        raise DrillFailedError("not true: the losses of all steps are equal")

    monkeypatch.setattr(drills, "catalogue", lambda: {"good": survives, "bad": breaks})
    monkeypatch.setattr(drills, "build_reference", lambda folder, config, num_ranks: None)
    words = ["drill", "experiment=quickstart", f"drill_dir={tmp_path}/drill"]
    monkeypatch.setattr(sys, "argv", words)

    with pytest.raises(SystemExit) as end:
        drill.main()

    assert end.value.code == 1
    text = capsys.readouterr().out
    assert "1 of 2 drills passed" in text
    assert "FAIL  bad" in text
    report = json.loads((tmp_path / "drill/drill.json").read_text())
    assert not report["passed"]
    assert [(found["name"], found["passed"]) for found in report["drills"]] == [
        ("good", True),
        ("bad", False),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drills=sigkil_rank"], "drills=sigkil_rank: choose all, or among sigterm_warm_up, "),
        (["num_ranks=1"], "num_ranks=1: must be at least 2: most drills need two ranks"),
    ],
)
def test_wrong_settings_are_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    done = run_program("drill", f"drill_dir={tmp_path}/drill", *words, seconds=120)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_something_else_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")

    done = run_program("drill", f"drill_dir={tmp_path}", seconds=120)

    assert done.returncode == 2
    assert "holds other files: name an empty or new folder" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("is_of_one_step", "first_step", "is_injected"),
    [(False, 3, True), (False, 4, True), (True, 3, True), (True, 4, False), (False, 2, False)],
)
def test_a_fault_waits_for_its_step(
    tmp_path: Path, is_of_one_step: bool, first_step: int, is_injected: bool
) -> None:
    fault = Fault(kind="sleep", rank=0, phase=Phase.STEP, step=3, is_of_one_step=is_of_one_step)
    record = tmp_path / "fault.injected"

    FaultyPhases({record: fault}).enter(Phase.STEP, first_step)

    assert record.exists() == is_injected


def test_a_drill_shortens_wsd_and_keeps_the_groups_that_its_model_has(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=9)
    groups = tuple(ParameterGroupConfig(pattern=pattern) for pattern in ("40.*", "*.bias"))
    optimizer = replace(
        config.optimizer, schedule="wsd", decay_steps=1000, warmup_steps=500, groups=groups
    )

    small = test_bed._small_optimizer(optimizer, config.model)

    assert (small.schedule, small.warmup_steps, small.decay_steps) == ("wsd", 2, 10)
    assert small.groups == groups[1:]
