"""Small agreements between ranks: values, not gradients.

Source: ours, on torch.distributed.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

Value = TypeVar("Value")

LEADER = 0
"""The rank that speaks, writes and decides."""


def barrier(group: ProcessGroup | None = None) -> None:
    """Wait until every rank is here.

    Args:
        group: of all ranks; None: the one whose time-out is that of a step's collectives.
    """
    dist.barrier(group)


def patient_group(timeout_seconds: float) -> ProcessGroup:
    """Create a group of all ranks that may wait long for the leader; every rank must call it."""
    group = dist.new_group(timeout=timedelta(seconds=timeout_seconds), backend="gloo")
    assert group is not None, "every rank is in a group of all"
    return group


def agree_max(values: Sequence[int]) -> list[int]:
    """Return the largest of every rank's values, place by place; every rank must call it."""
    largest = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


def broadcast_from_leader(value: Value) -> Value:
    """Return the leader's value on every rank; what the others pass in is ignored."""
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=LEADER, device=torch.device("cpu"))
    return box[0]


def gather_everywhere(value: Value) -> list[Value]:
    """Return every rank's value, in the order of ranks, on every rank."""
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value)
    return boxes
