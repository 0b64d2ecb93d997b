"""Gathers the whole model on one rank during training, to draw sample pictures with it."""

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import LEADER, gather_everywhere
from ernie_vilg.parallel.layout.groups import Groups


def gather_to_leader(engine: Engine) -> dict[str, Tensor] | None:
    """Gather every whole parameter on the leader; all ranks must call.

    Returns:
        parameters by name, in the training precision, on the CPU; None on other ranks.
    """
    groups = engine.groups
    stage = {name: _whole(name, value, groups) for name, value in engine.local_parameters()}
    speaks = groups.data_rank == 0 and groups.tensor_rank == 0
    contents = gather_everywhere(
        [(name, tuple(value.shape), value.dtype) for name, value in stage.items()] if speaks else []
    )
    if groups.rank == LEADER:
        for rank, content in enumerate(contents):
            for name, shape, dtype in content if rank != LEADER else []:
                stage[name] = torch.empty(shape, dtype=dtype)
                dist.recv(stage[name], src=rank)
        return stage
    if speaks:
        for value in stage.values():
            dist.send(value, dst=LEADER)
    return None


def _whole(name: str, parameter: nn.Parameter, groups: Groups) -> Tensor:
    """Gather a parameter over data-parallel ranks (under ZeRO 3) and tensor ranks."""
    with deepspeed.zero.GatheredParameters([parameter]):  # does nothing below ZeRO 3
        value = parameter.detach().clone()
    dimension = split_dimension(name)
    if groups.tensor_size > 1 and dimension is not None:
        shards = [torch.empty_like(value) for _ in range(groups.tensor_size)]
        dist.all_gather(shards, value.contiguous(), group=groups.tensor_group)
        value = torch.cat(shards, dim=dimension)
    return value.cpu()
