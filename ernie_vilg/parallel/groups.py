"""Which ranks work together, and on what device.

Ranks are numbered with the tensor axis fastest, then data, then pipeline:
`rank = (pipeline * data_size + data) * tensor_size + tensor`. That is megatron-core's order
"tp-cp-ep-dp-pp" and DeepSpeed's axes (pipe, data, model) alike, so that ranks that talk most
are neighbours. `Groups` also is what DeepSpeed's plain engine asks for as `mpu`.

Source: ours.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from ernie_vilg.config.launch import Launch


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A rank's coordinates and the process groups through it."""

    rank: int
    """Of this process among all."""
    device: torch.device
    """Of this rank."""
    tensor_rank: int
    """Which share of the split layers this rank holds."""
    tensor_size: int
    """Ranks that share each layer."""
    data_rank: int
    """Which replica this rank belongs to."""
    data_size: int
    """Replicas."""
    pipeline_rank: int
    """Which stage this rank runs."""
    pipeline_size: int
    """Stages."""
    tensor_group: ProcessGroup
    """Ranks that differ in the tensor axis alone."""
    data_group: ProcessGroup
    """Ranks that differ in the data axis alone."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tensor_size * self.data_size * self.pipeline_size

    # The methods that DeepSpeed's plain engine calls on its `mpu`. "Model parallel" means
    # tensor parallel there: the plain engine knows no pipeline.

    def get_model_parallel_rank(self) -> int:
        """Return the rank along the tensor axis."""
        return self.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Return the size of the tensor axis."""
        return self.tensor_size

    def get_model_parallel_group(self) -> ProcessGroup:
        """Return the group along the tensor axis."""
        return self.tensor_group

    def get_data_parallel_rank(self) -> int:
        """Return the rank along the data axis."""
        return self.data_rank

    def get_data_parallel_world_size(self) -> int:
        """Return the size of the data axis."""
        return self.data_size

    def get_data_parallel_group(self) -> ProcessGroup:
        """Return the group along the data axis."""
        return self.data_group


def machine_device(launch: Launch) -> torch.device:
    """Return the device of a process: its GPU where there are GPUs, else the CPU."""
    has_cuda = torch.cuda.is_available()
    return torch.device("cuda", launch.local_rank) if has_cuda else torch.device("cpu")


def start_processes(launch: Launch, timeout_seconds: int) -> torch.device:
    """Join the other ranks and return this rank's device.

    Args:
        launch: this process's place.
        timeout_seconds: how long to wait for the others, in every later collective too.
    """
    # DeepSpeed reads its local rank, and a single process its rendezvous, from here.
    os.environ.update(
        RANK=str(launch.rank),
        LOCAL_RANK=str(launch.local_rank),
        WORLD_SIZE=str(launch.world_size),
    )
    device = machine_device(launch)
    has_cuda = device.type == "cuda"
    if has_cuda:
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_seconds)
    # Both back ends: device tensors go over NCCL, checkpoint book-keeping over gloo.
    backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
    if launch.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(
            backend, rank=launch.rank, world_size=launch.world_size, timeout=timeout
        )
    return device


def build_groups(tensor_size: int, pipeline_size: int, device: torch.device) -> Groups:
    """Create the process groups of a layout; every rank must call it.

    Args:
        tensor_size: ranks that share each layer.
        pipeline_size: stages. The two must divide the world size.
        device: this rank's.
    """
    rank = dist.get_rank()
    data_size = dist.get_world_size() // (tensor_size * pipeline_size)
    # [pipeline, data, tensor]
    ranks = torch.arange(dist.get_world_size()).view(pipeline_size, data_size, tensor_size)
    pipeline_rank, data_rank, tensor_rank = (ranks == rank).nonzero()[0].tolist()
    return Groups(
        rank=rank,
        device=device,
        tensor_rank=tensor_rank,
        tensor_size=tensor_size,
        data_rank=data_rank,
        data_size=data_size,
        pipeline_rank=pipeline_rank,
        pipeline_size=pipeline_size,
        tensor_group=_of_this_rank(group_through(rank, ranks.flatten(0, 1))),
        data_group=_of_this_rank(group_through(rank, ranks.transpose(1, 2).flatten(0, 1))),
    )


def group_through(rank: int, rows: torch.Tensor) -> ProcessGroup | None:
    """Create a group per row; every rank must call it.

    Args:
        rank: this one.
        rows: ranks of each group, int64 [groups, members].

    Returns:
        the group that holds `rank`, None if none does.
    """
    mine = None
    for row in rows.tolist():
        group = dist.new_group(row)  # every rank must take part in creating every group
        if rank in row:
            mine = group
    return mine


def _of_this_rank(group: ProcessGroup | None) -> ProcessGroup:
    assert group is not None, "an axis of the layout goes through every rank"
    return group
