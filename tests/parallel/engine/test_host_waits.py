"""The host reads nothing of a step but what is decided, so that a GPU never waits for it.

A CPU stands for the GPU (benchmarks/support/host_waits.py): every tensor counts as one on it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.support.host_waits import HostWait, host_waits
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.loss import num_losses
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.step_times import instrument
from ernie_vilg.training.guards import RunGuard
from ernie_vilg.training.metrics import Meter
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import batches_of_step
from tests.training.runs import start, tiny_run

WARM_UP_STEPS = 2
MAX_WAITS = 2


def waits_of_a_step(
    launch: Launch, config: PretrainConfig, precision: torch.dtype
) -> list[HostWait]:
    """Take steps as the training loop does, and return the waits of the last one."""
    engine = start(launch, config, precision)
    meter = Meter(losses=torch.zeros(num_losses(config.model)))
    guard = RunGuard(engine, config.guards)
    waits: list[HostWait] = []
    with Communication(engine.groups) as communication, instrument(engine, communication):
        for step in range(1, WARM_UP_STEPS + 2):
            batches = batches_of_step(engine, step)
            with host_waits(engine.groups.device) as waits:
                losses = engine.train_batch(batches, learning_rate=1e-2)
                meter.add(losses, engine.last_skip)
                guard.after_step(step)
    return waits


@pytest.mark.distributed
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        pytest.param({}, 1, id="plain engine"),
        pytest.param({"pipeline_parallel_size": 2}, 2, id="pipeline of 2"),
    ],
)
def test_a_step_makes_the_host_wait_at_most_twice(
    layout: dict[str, Any], ranks: int, precision: torch.dtype, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, steps=WARM_UP_STEPS + 1, **layout)

    for waits in run_distributed(waits_of_a_step, ranks, config, precision):
        assert len(waits) <= MAX_WAITS, "\n".join(map(str, waits))
