"""An optimizer in host memory takes the same steps as one on the device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG
from ernie_vilg.parallel.state.consolidate import gather_weights
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import HALFWAY, STEPS, run_config, take_steps


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("precision", "layout"),
    [
        pytest.param(torch.float32, {}, id="data 2, ZeRO 1, fp32"),
        pytest.param(torch.bfloat16, {"zero_stage": 2}, id="data 2, ZeRO 2, bf16"),
        pytest.param(torch.float32, {"zero_stage": 3}, id="data 2, ZeRO 3, fp32"),
        pytest.param(torch.float32, {"pipeline_parallel_size": 2}, id="pipeline 2, fp32"),
    ],
)
def test_offload_changes_neither_steps_nor_checkpoint(
    tmp_path: Path, precision: torch.dtype, layout: dict[str, Any]
) -> None:
    on_device, offloaded = (
        run_distributed(
            take_steps,
            2,
            run_config(tmp_path, offload_optimizer=offload, **layout),
            precision,
            tmp_path / str(offload),
        )[0]
        for offload in (False, True)
    )
    weights, expected = (
        gather_weights(tmp_path / str(offload) / str(STEPS) / CHECKPOINT_TAG)
        for offload in (True, False)
    )

    assert (on_device.is_offloaded, offloaded.is_offloaded) == (False, True)
    assert offloaded.losses == [pytest.approx(losses, rel=1e-6) for losses in on_device.losses]
    assert offloaded.gradient_norms == pytest.approx(on_device.gradient_norms, rel=1e-6)
    assert set(weights) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)


@pytest.mark.distributed
def test_a_run_may_be_resumed_with_its_optimizer_offloaded(tmp_path: Path) -> None:
    """In bf16 under ZeRO 1, offloading takes another optimizer class of DeepSpeed's, which rounds
    the sums of gradients to bf16 before it reduces them. Without offloading they are float32.
    """
    before, after = (run_config(tmp_path, offload_optimizer=offload) for offload in (False, True))

    whole = run_distributed(take_steps, 2, before, torch.bfloat16, tmp_path)[0]
    resumed = run_distributed(take_steps, 2, after, torch.bfloat16, tmp_path, HALFWAY)[0]

    assert resumed.losses == [pytest.approx(losses, rel=1e-4) for losses in whole.losses[HALFWAY:]]
    assert resumed.gradient_norms == pytest.approx(whole.gradient_norms[HALFWAY:], rel=1e-2)
