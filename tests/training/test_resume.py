"""A resumed run equals one that never stopped, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ernie_vilg.config.optimizer import ParameterGroupConfig
from tests.data.token_shards import write_token_shards
from tests.distributed import run_distributed
from tests.parallel.parity import GROUPS
from tests.training.runs import run, run_until_a_worker_dies, tiny_run


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "precision", "layout", "groups"),
    [
        pytest.param(2, torch.bfloat16, {}, (), id="data 2, ZeRO 1, bf16"),
        pytest.param(2, torch.float32, {"zero_stage": 3}, GROUPS, id="data 2, ZeRO 3, fp32"),
        pytest.param(
            2, torch.bfloat16, {"pipeline_parallel_size": 2}, GROUPS, id="pipeline 2, bf16"
        ),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path,
    world_size: int,
    precision: torch.dtype,
    layout: dict[str, int],
    groups: tuple[ParameterGroupConfig, ...],
) -> None:
    for name in ("killed", "whole"):
        write_token_shards(tmp_path / name / "shards", [9, 7, 12])
    whole, killed = (
        replace(run, optimizer=replace(run.optimizer, groups=groups))
        for run in (tiny_run(tmp_path / name, steps=6, **layout) for name in ("whole", "killed"))
    )

    _, reference = run_distributed(run, world_size, whole, precision)[0]
    run_distributed(run, world_size, killed, precision, 3)
    first_step, resumed = run_distributed(run, world_size, killed, precision)[0]

    assert first_step == 2  # the newest checkpoint before the kill
    assert resumed == {step: reference[step] for step in (3, 4, 5, 6)}


@pytest.mark.gpu
@pytest.mark.parametrize("compile_blocks", [False, True], ids=["eager", "compiled"])
def test_on_a_gpu_killed_and_resumed_equals_uninterrupted(
    compile_blocks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as launch/pretrain.py
    for name in ("killed", "whole"):
        write_token_shards(tmp_path / name / "shards", [9, 7, 12])
    whole, killed = (
        replace(tiny_run(tmp_path / name, steps=6), compile_blocks=compile_blocks)
        for name in ("whole", "killed")
    )

    _, reference = run_distributed(run, 1, whole, torch.bfloat16, use_gpu=True)[0]
    run_distributed(run, 1, killed, torch.bfloat16, 3, use_gpu=True)
    first_step, resumed = run_distributed(run, 1, killed, torch.bfloat16, use_gpu=True)[0]

    assert first_step == 2
    assert resumed == {step: reference[step] for step in (3, 4, 5, 6)}


@pytest.mark.distributed
def test_a_killed_data_worker_ends_the_run_which_resumes_with_other_workers(
    tmp_path: Path,
) -> None:
    for name in ("killed", "whole"):
        write_token_shards(tmp_path / name / "shards", [9, 7, 12])
    whole = tiny_run(tmp_path / "whole", steps=8)
    killed = tiny_run(tmp_path / "killed", steps=8, num_workers=2)
    resumed_with_one = tiny_run(tmp_path / "killed", steps=8, num_workers=1)

    _, reference = run_distributed(run, 2, whole, torch.float32)[0]
    ends = run_distributed(run_until_a_worker_dies, 2, killed, torch.float32, 3)
    first_step, resumed = run_distributed(run, 2, resumed_with_one, torch.float32)[0]

    assert "data worker with pid" in ends[1]
    assert first_step in (2, 4)  # what had been read ahead may have carried it to the next
    assert resumed == {step: reference[step] for step in range(first_step + 1, 9)}
