"""Each rank takes its own GPU, and every process group has the timeout that is set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ernie_vilg.config.launch import DeviceError, Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.layout import groups as layout
from ernie_vilg.parallel.layout.groups import machine_device, timeout_seconds_of
from tests.distributed import run_distributed
from tests.training.runs import start, tiny_run


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def rank_of_machine(local_rank: int) -> Launch:
    return Launch(rank=8 + local_rank, local_rank=local_rank, world_size=16)


@pytest.mark.parametrize(
    ("count", "local_rank", "device"),
    [
        pytest.param(0, 3, "cpu", id="no GPU"),
        pytest.param(8, 3, "cuda:3", id="all GPUs of the machine are visible"),
        pytest.param(1, 3, "cuda:0", id="each rank sees its own GPU only"),
    ],
)
def test_the_device_of_a_rank(
    count: int, local_rank: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, count)

    assert machine_device(rank_of_machine(local_rank)) == torch.device(device)


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")

    with pytest.raises(DeviceError) as error:
        machine_device(rank_of_machine(2))

    for part in ("rank 10 is number 2 on", "sees 2 GPUs", "CUDA_VISIBLE_DEVICES=4,5"):
        assert part in str(error.value)


@pytest.mark.parametrize(("count", "index"), [(1, "0"), (8, "3")])
def test_deepspeed_is_told_the_index_of_the_rank_s_gpu(
    count: int, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, count)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(layout, "_store_address", lambda: None)
    monkeypatch.setattr(layout, "open_shared_store", lambda *_: dist.HashStore())
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)

    device = layout.start_processes(rank_of_machine(3), timeout_seconds=60)

    assert layout.os.environ["LOCAL_RANK"] == index
    assert chosen == [device] == [torch.device("cuda", int(index))]


def timeouts(launch: Launch, config: PretrainConfig) -> dict[str, float]:
    """Return the timeout of each process group that exists once the engine is built."""
    start(launch, config, torch.float32)  # collectives end after 60 s
    own: dict[Any, Any] = distributed_c10d._world.pg_map
    return {group.group_name: timeout_seconds_of(group) for group in own}


@pytest.mark.distributed
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, id="tensor 2 x pipeline 2"
        ),
        pytest.param({"zero_stage": 3}, id="ZeRO 3"),
    ],
)
def test_every_group_has_the_set_timeout(tmp_path: Path, options: dict[str, Any]) -> None:
    config = tiny_run(tmp_path, steps=1, **options)
    config = replace(config, model=replace(config.model, tied_embeddings=True))
    tensor, stages = (
        config.parallelism.tensor_parallel_size,
        config.parallelism.pipeline_parallel_size,
    )

    for rank in run_distributed(timeouts, max(2, tensor * stages), config):
        assert len(rank) > 1
        assert set(rank.values()) == {60.0}
