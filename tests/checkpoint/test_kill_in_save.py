"""A run with the real engine, killed anywhere in a save, resumes to the same losses."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.layout.collectives import agree_max
from tests.checkpoint.checkpoint_runs import AtPoint
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import batches_of_step
from tests.training.runs import checkpoints_of, start, tiny_run

STEPS = 8
SAVED_BEFORE = 2
"""The last step before the save in which the run is killed."""


def train(
    launch: Launch, config: PretrainConfig, killed_at: str | None
) -> tuple[int, dict[int, list[str]]]:
    """Train to the end, or until the leader dies in its third save; return losses by step."""
    engine = start(launch, config, torch.bfloat16)
    dies = AtPoint("", lambda: None)
    checkpoints = checkpoints_of(config, engine, dies)
    first = checkpoints.restore(engine)
    losses = {}
    for step in range(first, STEPS):
        if not any(agree_max([checkpoints.is_writing])):
            checkpoints.commit_written()
        step_losses = engine.train_batch(batches_of_step(engine, step), learning_rate=1e-2)
        losses[step + 1] = [value.hex() for value in engine.mean_losses(step_losses).tolist()]
        if (step + 1) % SAVED_BEFORE == 0:
            checkpoints.finish()
            if killed_at is not None and step + 1 > SAVED_BEFORE and launch.rank == 0:
                dies.arm(killed_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            checkpoints.save(engine, step + 1)
    checkpoints.finish()
    return first, losses


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("point", "resumed_at"),
    [
        ("save: before data", 2),
        ("save: after file", 2),
        ("save: before manifest", 2),
        ("save: before rename", 2),
        ("save: before pointer", 4),
        ("save: after pointer", 4),
    ],
)
def test_a_run_killed_in_a_save_equals_one_that_was_not(
    tmp_path: Path, point: str, resumed_at: int
) -> None:
    whole = tiny_run(tmp_path / "whole", steps=STEPS)
    whole = replace(whole, checkpoint=replace(whole.checkpoint, asynchronous=True))
    killed = replace(whole, run_dir=str(tmp_path / "killed"))

    _, reference = run_distributed(train, 2, whole, None)[0]
    with pytest.raises(AssertionError, match="rank 0 ended without a result"):
        run_distributed(train, 2, killed, point)
    first, losses = run_distributed(train, 2, killed, None)[0]

    assert first == resumed_at
    assert losses == {step: reference[step] for step in range(first + 1, STEPS + 1)}
