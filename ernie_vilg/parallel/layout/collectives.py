"""Small collectives for values that ranks must agree on."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

Value = TypeVar("Value")

LEADER = 0
"""Rank that logs, writes and decides for all."""


def barrier(group: ProcessGroup | None = None) -> None:
    """Wait for every rank.

    Args:
        group: a group of all ranks; None: the default one, whose timeout is that of a step.
    """
    dist.barrier(group)


def group_with_timeout(timeout_seconds: float) -> ProcessGroup:
    """Create a group of all ranks with a timeout of its own; every rank must call it."""
    group = dist.new_group(timeout=timedelta(seconds=timeout_seconds), backend="gloo")
    assert group is not None, "the group has every rank"
    return group


def agree_max(values: Sequence[int]) -> list[int]:
    """Return the elementwise maximum over ranks; every rank must call it."""
    largest = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


def broadcast_from_leader(value: Value) -> Value:
    """Return the leader's value on every rank; the other ranks' arguments are ignored."""
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=LEADER, device=torch.device("cpu"))
    return box[0]


def gather_everywhere(value: Value) -> list[Value]:
    """Return the values of all ranks, in the order of ranks, on every rank."""
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value)
    return boxes
