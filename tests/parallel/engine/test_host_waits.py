"""The host reads nothing of a step but what is decided, so that a GPU never waits for it.

A CPU stands for the GPU (benchmarks/support/host_waits.py): every tensor counts as one on it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from benchmarks.support.host_waits import host_waits
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.loss import num_losses
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.step_times import instrument
from ernie_vilg.runs.meter import Meter
from ernie_vilg.training.guards import RunGuard
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import batches_of_step
from tests.training.runs import tiny_run

WARM_UP_STEPS = 2
PRECISIONS = (torch.float32, torch.bfloat16)
MAX_WAITS = 1
"""The decision about the update of the step before."""


def waits_of_a_step(launch: Launch, config: PretrainConfig) -> dict[str, list[str]]:
    """Take steps as the training loop does, and return the waits of the last one by precision."""
    device = start_processes(launch, timeout_seconds=60)
    groups = build_groups(1, config.parallelism.pipeline_parallel_size, device)
    found = {}
    for precision in PRECISIONS:
        engine = build_engine(config, groups, precision)
        meter = Meter(losses=torch.zeros(num_losses(config.model), device=device))
        guard = RunGuard(engine, config.guards)
        with Communication(engine.groups) as communication, instrument(engine, communication):
            for step in range(1, WARM_UP_STEPS + 2):
                batches = batches_of_step(engine, step)
                with host_waits(device) as waits:
                    losses = engine.train_batch(batches, learning_rate=1e-2)
                    meter.add(losses, engine.last_skip, config.parallelism.global_batch_size)
                    guard.after_step(step)
        # A wait that a CPU does not show: the mean of the loss for DeepSpeed's own log.
        assert getattr(engine.deepspeed_engine, "agg_train_loss", None) is None
        found[str(precision)] = [str(wait) for wait in waits]
    return found


def assert_few(waits: dict[str, list[str]]) -> None:
    for precision, places in waits.items():
        assert len(places) <= MAX_WAITS, "\n".join([precision, *places])


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        pytest.param({}, 1, id="plain engine"),
        pytest.param({"pipeline_parallel_size": 2}, 2, id="pipeline of 2"),
    ],
)
def test_a_step_makes_the_host_wait_once(
    layout: dict[str, Any], ranks: int, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, steps=WARM_UP_STEPS + 1, **layout)

    for waits in run_distributed(waits_of_a_step, ranks, config):
        assert_few(waits)


@pytest.mark.gpu
def test_a_step_on_a_gpu_makes_the_host_wait_once(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=WARM_UP_STEPS + 1)

    (waits,) = run_distributed(waits_of_a_step, 1, config, use_gpu=True)

    assert_few(waits)


def test_what_waits_is_named_with_its_place() -> None:
    values = torch.tensor([1.0, 2.0])

    with host_waits(torch.device("cpu")) as waits:
        float(values[0])
        values.tolist()
        values[values > 1]
        torch.nonzero(values)
        torch.tensor([1.0], device="cpu")
        values.cpu()
        bool(values.any())
        torch.zeros(2).add_(values)  # waits for nothing
        get_accelerator().synchronize()

    assert [wait.kind for wait in waits] == [
        "a number is read",
        "a list is read",
        "a shape depends on values (a mask as index)",
        "a shape depends on values (nonzero)",
        "a copy to the device",
        "a copy to the host",
        "a number is read",
        "synchronize, by DeepSpeed's accelerator",
    ]
    assert all("test_what_waits_is_named" in wait.stack[-1] for wait in waits)
    assert str(waits[0]).startswith("a number is read: ")
    float(values[0])
    assert len(waits) == 8, "nothing is counted after the block"
