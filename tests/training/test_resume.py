"""A run that stopped and was started again equals one that never stopped, bit for bit."""

from pathlib import Path

import pytest
import torch

from tests.data.shards import write_token_shards
from tests.distributed import run_distributed
from tests.training.runs import run, tiny_run


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "precision", "layout"),
    [
        pytest.param(2, torch.bfloat16, {}, id="data 2, ZeRO 1, bf16"),
        pytest.param(2, torch.float32, {"zero_stage": 3}, id="data 2, ZeRO 3, fp32"),
        pytest.param(2, torch.bfloat16, {"pipeline_parallel_size": 2}, id="pipeline 2, bf16"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, world_size: int, precision: torch.dtype, layout: dict[str, int]
) -> None:
    for name in ("killed", "whole"):
        write_token_shards(tmp_path / name / "shards", [9, 7, 12])
    whole = tiny_run(tmp_path / "whole", steps=6, **layout)
    killed = tiny_run(tmp_path / "killed", steps=6, **layout)

    _, reference = run_distributed(run, world_size, whole, precision)[0]
    run_distributed(run, world_size, killed, precision, 3)
    first_step, resumed = run_distributed(run, world_size, killed, precision)[0]

    assert first_step == 2  # the newest checkpoint before the kill
    assert resumed == {step: reference[step] for step in (3, 4, 5, 6)}
