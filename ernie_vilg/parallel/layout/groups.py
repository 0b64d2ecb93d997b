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
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import HashStore, ProcessGroup, Store  # type: ignore[attr-defined]

from ernie_vilg.config.launch import Launch, RendezvousError
from ernie_vilg.parallel.layout.rendezvous import MeetingPlace, meet


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


def start_processes(
    launch: Launch,
    timeout_seconds: int,
    *,
    rendezvous_timeout_seconds: int = 120,
    dump_folder: Path | None = None,
) -> torch.device:
    """Join the other ranks and return this rank's device.

    Args:
        launch: this process's place.
        timeout_seconds: how long to wait for the others in every later collective.
        rendezvous_timeout_seconds: how long to wait for them now.
        dump_folder: where torch's flight recorder leaves the last collectives of each rank when
            one of them fails on GPUs; None: where torch puts them.

    Raises:
        RendezvousError: the ranks do not find each other.
    """
    # DeepSpeed reads its local rank, and a single process its rendezvous, from here.
    os.environ.update(
        RANK=str(launch.rank),
        LOCAL_RANK=str(launch.local_rank),
        WORLD_SIZE=str(launch.world_size),
    )
    if dump_folder is not None:
        _record_collectives(dump_folder)
    device = machine_device(launch)
    has_cuda = device.type == "cuda"
    if has_cuda:
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_seconds)
    if launch.world_size == 1:
        store: Store = HashStore()
    else:
        store = meet(launch, _meeting_place(), rendezvous_timeout_seconds)
    store.set_timeout(timeout)
    # Both back ends: device tensors go over NCCL, checkpoint book-keeping over gloo.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_cuda else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
    )
    return device


def _meeting_place() -> MeetingPlace:
    """Return where the launcher has the ranks meet.

    Raises:
        RendezvousError: it does not say.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RendezvousError(
            f"MASTER_ADDR={host!r}, MASTER_PORT={port!r}: several ranks need the name of rank 0's "
            "machine and a port of it. deepspeed and torchrun set both, under srun export them as "
            "launch/slurm/pretrain.sbatch does"
        )
    return MeetingPlace(
        host=host,
        port=int(port),
        is_kept_by_launcher=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _record_collectives(folder: Path) -> None:
    """Keep the last collectives in memory, and say where they are written when one times out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        # The second name is the one of torch before 2.9, which people may have set.
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"): str(
            folder / "collectives-rank_"
        ),
    }
    for names, value in settings.items():
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = value


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
