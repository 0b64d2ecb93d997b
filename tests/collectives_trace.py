"""Every collective of this rank, at the level of c10d.

Collectives of torch.distributed, DeepSpeed and megatron-core, and torch's functional ones, all end
in operators that a dispatch mode sees.
"""

from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_KINDS = {
    "c10d.allreduce_": "all-reduce",
    "c10d.allreduce_coalesced_": "all-reduce",
    "c10d.allgather_": "all-gather",
    "c10d._allgather_base_": "all-gather",
    "c10d.allgather_into_tensor_coalesced_": "all-gather",
    "c10d.reduce_scatter_": "reduce-scatter",
    "c10d._reduce_scatter_base_": "reduce-scatter",
    "c10d.reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "c10d.reduce_": "reduce",
    "c10d.broadcast_": "broadcast",
    "c10d.send": "send",
    "c10d.recv_": "receive",
    "c10d.barrier": "barrier",
    "c10d.alltoall_": "all-to-all",
    "c10d.alltoall_base_": "all-to-all",
    "c10d.gather_": "gather",
    "c10d.scatter_": "scatter",
    "_c10d_functional.all_reduce": "all-reduce",
    "_c10d_functional.all_reduce_": "all-reduce",
    "_c10d_functional.all_gather_into_tensor": "all-gather",
    "_c10d_functional.reduce_scatter_tensor": "reduce-scatter",
    "_c10d_functional.all_to_all_single": "all-to-all",
    "_c10d_functional.broadcast": "broadcast",
}
_WHOLE_RESULT = ("all-gather",)
"""Kinds whose size is that of the result; the others' is that of the input."""


class Traced(NamedTuple):
    """One kind of collective of a step."""

    kind: str
    """Kind of collective."""
    members: tuple[int, ...]
    """Ranks of the group; sender and receiver of a message."""
    num_bytes: int
    """Bytes of the whole tensor: the larger of input and output."""


class CollectivesTrace(TorchDispatchMode):
    """Counts the collectives of this rank while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Traced] = Counter()
        """Number of each collective."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count an operator if it is a collective."""
        name = str(function._overloadpacket)
        if name.startswith(("c10d.", "_c10d_functional.")) and "wait" not in name:
            self._note(_KINDS[name], name, args)
        return function(*args, **(kwargs or {}))

    def _note(self, kind: str, name: str, args: tuple[Any, ...]) -> None:
        group = _group_of(args)
        members = tuple(dist.get_process_group_ranks(group))
        if kind in ("send", "receive"):
            peer = members[args[2]]
            me = dist.get_rank()
            members = (me, peer) if kind == "send" else (peer, me)
        size = max((_size(each) for each in args), default=0)
        if name.startswith("_c10d_functional.all_gather"):
            size *= len(members)
        self.counts[Traced(kind, members, size)] += 1


def _group_of(args: tuple[Any, ...]) -> ProcessGroup:
    for value in args:
        if isinstance(value, torch.ScriptObject):
            try:
                return ProcessGroup.unbox(value)
            except RuntimeError:
                continue  # the operation
        if isinstance(value, str):
            try:
                return dist.distributed_c10d._resolve_process_group(value)
            except (RuntimeError, LookupError, ValueError):
                continue  # the operation
    raise AssertionError(f"no group in {args}")


def _size(value: Any) -> int:
    return sum(each.nbytes for each in tree_leaves(value) if isinstance(each, Tensor))
