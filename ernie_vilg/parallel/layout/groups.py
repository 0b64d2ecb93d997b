"""The process groups and the device of a rank.

Ranks are numbered with the tensor axis fastest, then data, then pipeline:
`rank = (pipeline * data_size + data) * tensor_size + tensor`. megatron-core's order
"tp-cp-ep-dp-pp" and DeepSpeed's axes (pipe, data, model) are the same. Ranks that communicate
most are neighbours.
"""

import os
import socket
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, ProcessGroup, Store  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d as c10d

from ernie_vilg.config.launch import DeviceError, Launch, RendezvousError
from ernie_vilg.parallel.layout.flight_record import record_collectives
from ernie_vilg.parallel.layout.rendezvous import StoreAddress, open_shared_store


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A rank's coordinates and its process groups."""

    rank: int
    """Index of this process among all."""
    device: torch.device
    """Device of this rank."""
    tensor_rank: int
    """Index of this rank's shard of the split layers."""
    tensor_size: int
    """Number of ranks that share each layer."""
    data_rank: int
    """Index of the replica that this rank belongs to."""
    data_size: int
    """Number of replicas."""
    pipeline_rank: int
    """Index of the stage that this rank runs."""
    pipeline_size: int
    """Number of stages."""
    tensor_group: ProcessGroup
    """Ranks that differ from this one along the tensor axis only."""
    data_group: ProcessGroup
    """Ranks that differ from this one along the data axis only."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tensor_size * self.data_size * self.pipeline_size


def machine_device(launch: Launch) -> torch.device:
    """Return the device of a process: its GPU if the machine has GPUs, else the CPU.

    A launcher shows each process all GPUs of the machine, or only its own, as Slurm does with
    --gpus-per-task.

    Raises:
        DeviceError: the process sees several GPUs, but fewer than the machine has ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1:
        return torch.device("cuda", 0)
    if launch.local_rank >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise DeviceError(
            f"rank {launch.rank} is number {launch.local_rank} on {socket.gethostname()} and sees "
            f"{count} GPUs (CUDA_VISIBLE_DEVICES={visible}): every rank needs its own. Start at "
            f"most {count} ranks on this machine, or show each rank one GPU, as Slurm's "
            "--gpus-per-task=1 does"
        )
    return torch.device("cuda", launch.local_rank)


def start_processes(
    launch: Launch,
    timeout_seconds: int,
    *,
    rendezvous_timeout_seconds: int = 120,
    dump_folder: Path | None = None,
) -> torch.device:
    """Join the other ranks and return this rank's device.

    Args:
        launch: this process's rank.
        timeout_seconds: timeout of every later collective.
        rendezvous_timeout_seconds: timeout of the rendezvous.
        dump_folder: folder in which torch's flight recorder writes each rank's last collectives
            when one fails on GPUs; None: torch's default.

    Raises:
        RendezvousError: the ranks do not find each other.
        DeviceError: the machine has no GPU for this rank.
    """
    device = machine_device(launch)
    has_cuda = device.type == "cuda"
    # DeepSpeed reads its GPU's index from LOCAL_RANK, and a single process its rendezvous.
    os.environ.update(
        RANK=str(launch.rank),
        LOCAL_RANK=str(device.index if has_cuda else launch.local_rank),
        WORLD_SIZE=str(launch.world_size),
    )
    if dump_folder is not None:
        record_collectives(dump_folder)
    if has_cuda:
        torch.cuda.set_device(device)
    # torch has renamed collectives that are called by their old names, which still work.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    timeout = timedelta(seconds=timeout_seconds)
    if launch.world_size == 1:
        store: Store = HashStore()
    else:
        store = open_shared_store(launch, _store_address(), rendezvous_timeout_seconds)
    store.set_timeout(timeout)
    # Device tensors use NCCL, bookkeeping of checkpoints uses gloo. No device_id: torch would then
    # split every later group from this one at once, also the many that no step uses, and all ranks
    # would take part in each split. The warm-up connects the groups of a step instead.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_cuda else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
    )
    return device


def _store_address() -> StoreAddress:
    """Return the address of the ranks' store, as the launcher set it.

    Raises:
        RendezvousError: the launcher set none.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RendezvousError(
            f"MASTER_ADDR={host!r}, MASTER_PORT={port!r}: several ranks need the name of rank 0's "
            "machine and a port of it. deepspeed and torchrun set both; under srun, export them as "
            "launch/slurm/pretrain.sbatch does"
        )
    return StoreAddress(
        host=host,
        port=int(port),
        is_kept_by_launcher=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def build_groups(tensor_size: int, pipeline_size: int, device: torch.device) -> Groups:
    """Create the process groups of a layout; every rank must call it.

    Args:
        tensor_size: number of ranks that share each layer.
        pipeline_size: number of stages; the product of both must divide the world size.
        device: this rank's device.
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
        rank: this process.
        rows: ranks of each group, int64 [groups, members].

    Returns:
        the group that contains `rank`, or None.
    """
    mine = None
    timeout = timedelta(seconds=timeout_seconds_of(dist.group.WORLD))
    for row in rows.tolist():
        # Every rank must take part in creating every group. torch's own timeout is half an hour.
        group = dist.new_group(row, timeout=timeout)
        if rank in row:
            mine = group
    return mine


def timeout_seconds_of(group: ProcessGroup | None) -> float:
    """Return the timeout of a group's collectives in seconds.

    Args:
        group: a group of this rank, with gloo for tensors on the CPU as all groups have it.
    """
    assert group is not None, "the ranks have met"
    backend: Any = group._get_backend(torch.device("cpu"))
    # TORCH_DISTRIBUTED_DEBUG=DETAIL wraps backends. torch's fake backend has no options.
    options = getattr(backend, "wrapped_pg", backend).options
    timeout: timedelta = c10d.default_pg_timeout if options is None else options._timeout
    return timeout.total_seconds()


def _of_this_rank(group: ProcessGroup | None) -> ProcessGroup:
    assert group is not None, "every rank lies on each axis of the layout"
    return group
