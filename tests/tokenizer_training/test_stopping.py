"""A run stops on request with a checkpoint, and goes on as if it had not stopped."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.runs.phases import Phase
from ernie_vilg.vqgan.weights import read_card
from tests.distributed import run_distributed
from tests.tokenizer_training.tokenizer_run import (
    ALONE,
    HookedPhases,
    hash_of_state,
    metrics_of,
    run,
    tiny_config,
    write_shards,
)

STEPS, STOPPED_AT = 6, 3


def config_of(folder: Path, name: str) -> TrainImageTokenizerConfig:
    return tiny_config(folder / "shards", folder / name, steps=STEPS, save_every=100)


@pytest.fixture
def whole(tmp_path: Path) -> str:
    """Return the hash of the last state of a run that nobody stops."""
    write_shards(tmp_path / "shards")
    run(ALONE, config_of(tmp_path, "whole"))
    return hash_of_state(tmp_path / "whole", STEPS)


def send_sigterm(run_dir: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def write_stop(run_dir: Path) -> None:
    (run_dir / "STOP").touch()


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        pytest.param(send_sigterm, "terminated", id="SIGTERM"),
        pytest.param(write_stop, "stop_file", id="file STOP"),
    ],
)
def test_a_stopped_run_has_saved_and_goes_on_bit_for_bit(
    ask: Callable[[Path], None],
    reason: str,
    whole: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ernie_vilg.resilience.stopping._FILE_POLL_SECONDS", 0.0)
    config, run_dir = config_of(tmp_path, "stopped"), tmp_path / "stopped"
    run_dir.mkdir()
    phases = HookedPhases(at=Phase.STEP, step=STOPPED_AT, act=lambda: ask(run_dir))

    code = run(ALONE, config, phases=phases)

    stopped = json.loads((run_dir / "stopped.json").read_text())
    assert (code, stopped["reason"]) == (ExitCode.STOPPED, reason)
    step = stopped["step"]
    assert STOPPED_AT <= step < STEPS
    assert metrics_of(run_dir)[-1]["step"] == step
    assert read_card(run_dir / "weights").lineage["step"] == step
    assert not (run_dir / "metrics.json").exists()  # the evaluation belongs to the last step

    assert run(ALONE, config) == ExitCode.DONE
    assert hash_of_state(run_dir, STEPS) == whole


def test_a_run_stops_at_its_time_limit(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    config = config_of(tmp_path, "run")
    config = replace(config, stopping=replace(config.stopping, max_hours=1e-9))

    code = run(ALONE, config)

    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert (code, stopped["reason"], stopped["step"]) == (ExitCode.STOPPED, "time_limit", 0)


def stop_one_rank(launch: Launch, config: TrainImageTokenizerConfig) -> int:
    act = (lambda: send_sigterm(Path(config.run_dir))) if launch.rank == 1 else (lambda: None)
    return run(launch, config, phases=HookedPhases(at=Phase.STEP, step=STOPPED_AT, act=act))


@pytest.mark.distributed
def test_a_request_to_one_rank_stops_all(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")

    codes = run_distributed(stop_one_rank, 2, config_of(tmp_path, "run"))

    assert codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stopped["reason"] == "terminated"
