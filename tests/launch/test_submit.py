"""A job becomes one command, and its faults are reported before it waits in a queue."""

import dataclasses
import logging
import os
import shlex
import sys
from pathlib import Path

import pytest

from ernie_vilg.config.cluster import SlurmConfig
from ernie_vilg.config.submit import SubmitConfig
from ernie_vilg.planning.history import RunRecord, write_record
from launch import submit
from launch.submit import SCRIPT, sbatch_command, time_limit_warning
from launch.support.composition import compose_program

JOB = (
    "experiment=quickstart",
    "cluster=slurm",
    "cluster.slurm.nodes=2",
    "parallelism.global_batch_size=256",
)


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config: SubmitConfig = compose_program("submit", words)
    monkeypatch.setattr(sys, "argv", ["launch/submit.py", *words])
    main = submit.main.__wrapped__  # type: ignore[attr-defined]
    main(config)


def composed(*words: str) -> tuple[SubmitConfig, SlurmConfig]:
    config: SubmitConfig = compose_program("submit", [*JOB, *words])
    assert config.cluster.slurm is not None
    return config, config.cluster.slurm


def measured(*, seconds_per_step: float, world_size: int) -> RunRecord:
    return RunRecord(
        hardware="cpu",
        world_size=world_size,
        settings={},
        peak_memory_bytes=1,
        seconds_per_step=seconds_per_step,
        parts={},
    )


def test_the_command_asks_for_what_is_set_and_passes_the_run_on() -> None:
    slurm = SlurmConfig(
        nodes=4,
        time_limit="12:00:00",
        partition="gpu",
        account="vision",
        container="images/train.sqsh",
        container_mounts=("/data", "/scratch"),
        options=("--qos=high",),
    )
    settings = ["experiment=quickstart", "submit=true", "seconds_per_step=2", "run_dir=a b"]

    assert sbatch_command(slurm, settings) == [
        "sbatch",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=8",
        "--time=12:00:00",
        "--signal=USR1@180",
        "--partition=gpu",
        "--account=vision",
        "--qos=high",
        SCRIPT,
        "--container=images/train.sqsh",
        "--mounts=/data,/scratch",
        "experiment=quickstart",
        "run_dir=a b",
    ]


def test_nothing_is_submitted_unless_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no sbatch

    run(*JOB, monkeypatch=monkeypatch)

    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    assert words[:2] == ["sbatch", "--nodes=2"]
    # The job's settings are those that pretrain accepts.
    compose_program("pretrain", words[words.index(SCRIPT) + 1 :])


def test_a_layout_that_the_nodes_do_not_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="world size 16 is no multiple of"):
        run(*JOB, "parallelism.pipeline_parallel_size=3", monkeypatch=monkeypatch)


def test_without_slurm_it_says_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="add cluster=slurm"):
        run("experiment=quickstart", monkeypatch=monkeypatch)


def test_a_missing_container_stops_a_submission_and_warns_on_paper(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folders = [f"data.{name}={tmp_path}" for name in ("token_shards", "text_tokenizer")]
    words = [
        *JOB,
        *folders,
        f"data.image_tokenizer={tmp_path}",
        "samples.every=0",
        f"cluster.slurm.container={tmp_path}/none.sif",
    ]

    with pytest.raises(ValueError, match=r"cluster\.slurm\.container=.*none\.sif: no such file"):
        run(*words, "submit=true", monkeypatch=monkeypatch)
    with caplog.at_level(logging.WARNING):
        run(*words, monkeypatch=monkeypatch)

    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"cluster.slurm.container={tmp_path}/none.sif"
    ]


@pytest.mark.parametrize(
    ("given", "limit", "is_short"),
    [
        pytest.param(10.0, "00:20:00", False, id="1,000 s of 1,020 s"),
        pytest.param(10.3, "00:20:00", True, id="1,030 s of 1,020 s"),
        pytest.param(None, "00:20:00", True, id="measured: 11 s"),
        pytest.param(None, "1-00:00:00", False, id="a day"),
    ],
)
def test_a_limit_below_one_checkpoint_interval_warns(
    tmp_path: Path, given: float | None, limit: str, is_short: bool
) -> None:
    write_record(tmp_path, measured(seconds_per_step=11, world_size=16))
    config, slurm = composed(
        f"run_dir={tmp_path}", f"cluster.slurm.time_limit={limit}", "checkpoint.every=100"
    )

    warning = time_limit_warning(dataclasses.replace(config, seconds_per_step=given), slurm)

    assert (warning is not None) == is_short
    if warning is not None:
        assert "time_limit=00:20:00 leaves 1,020 s" in warning
        assert f"takes {100 * (given or 11):,.0f} s (checkpoint.every=100 x" in warning


def test_a_measurement_with_other_ranks_is_none(tmp_path: Path) -> None:
    write_record(tmp_path, measured(seconds_per_step=11, world_size=8))
    config, slurm = composed(f"run_dir={tmp_path}", "cluster.slurm.time_limit=00:04:00")

    assert time_limit_warning(config, slurm) is None


def test_a_measurement_of_another_version_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text("{}")
    config, slurm = composed(f"run_dir={tmp_path}")

    assert "it is not of this version" in str(time_limit_warning(config, slurm))


def test_without_a_measurement_no_time_is_guessed(tmp_path: Path) -> None:
    config, slurm = composed(f"run_dir={tmp_path}", "cluster.slurm.time_limit=00:04:00")

    assert time_limit_warning(config, slurm) is None


def test_slurms_own_words_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: x' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    with pytest.raises(ValueError, match=r"Slurm refuses the job:\nsbatch: error: invalid part"):
        submit.submit(["sbatch", "job"])


def test_without_sbatch_it_says_where_to_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ValueError, match="submit from a login node"):
        submit.submit(["sbatch", "job"])
