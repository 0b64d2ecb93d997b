"""Small agreements between ranks: values, not gradients.

Source: ours, on torch.distributed.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")

LEADER = 0
"""The rank that speaks, writes and decides."""


def barrier() -> None:
    """Wait until every rank is here."""
    dist.barrier()


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
