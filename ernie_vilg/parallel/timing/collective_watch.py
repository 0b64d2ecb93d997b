"""Watches this rank's collectives: the last one, their count, and the time spent in them.

Every collective that Python code starts, in torch, DeepSpeed, megatron-core or this project, calls
a method of torch's `ProcessGroup`, and every wait calls `Work.wait`; those of split linear layers
call functional operators, in compiled graphs too. An open `Communication` wraps all. It counts the
collectives of each group: all ranks of a group call them in the same order, so the others wait for
the rank that has started fewer.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group as resolve_process_group
from torch.distributed import ProcessGroup, Work

from ernie_vilg.parallel.engine.library_patches import replaced
from ernie_vilg.parallel.layout.coordinates import Coordinates, coordinates_of
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.parallel.timing.span_clock import Span, SpanClock, clock_of

_NAMES = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "allgather": "all_gather",
    "allgather_coalesced": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "_allgather_base": "all_gather",
    "all_gather_single": "all_gather",
    "all_gather_single_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_single_coalesced": "reduce_scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all",
    "all_to_all_single": "all_to_all",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "gather": "gather",
    "scatter": "scatter",
    "barrier": "barrier",
    "monitored_barrier": "barrier",
    "send": "send",
    "recv": "receive",
}
"""Name in torch.distributed of each method; no release of torch has all of them."""

_OPERATORS = {
    "all_reduce": "allreduce",
    "all_reduce_": "allreduce",  # what Inductor makes of the former
    "all_gather_into_tensor": "_allgather_base",
    "reduce_scatter_tensor": "_reduce_scatter_base",
}
"""Method of `ProcessGroup` of each functional collective that split linear layers start."""

_MAX_OPEN_WORKS = 256
"""Number of asynchronous collectives kept until a wait; some are never waited for."""


class Collective(NamedTuple):
    """One collective, described equally on all its ranks."""

    name: str
    """Name of the collective, such as all_reduce."""
    group: str
    """Description of the group."""
    key: str
    """Key of the group, equal on all its ranks."""
    members: tuple[int, ...]
    """Ranks of the group."""
    number: int
    """Number of collectives with this key so far, this one included."""
    num_bytes: int
    """Size of the input."""

    def __str__(self) -> str:
        return f"{self.name} {self.group} (number {self.number}, {self.num_bytes:,} bytes)"


class Communication:
    """Records this rank's collectives while it is open; a process may open one at a time."""

    def __init__(self, groups: Groups, clock: SpanClock | None = None) -> None:
        """Create a record that is not open yet.

        Args:
            groups: this rank's groups.
            clock: clock that adds up the seconds; None: the one of the rank's device.
        """
        self.clock = clock or clock_of(groups.device)
        self._span = Span("", True)
        self._groups = groups
        self._counts: dict[str, int] = {}
        self.last: Collective | None = None
        """Collective that was started last."""
        self._waiting: Collective | None = None
        self._unfinished: deque[tuple[Any, Collective]] = deque()
        self._by_work: OrderedDict[int, Collective] = OrderedDict()
        self._by_storage: OrderedDict[int, Collective] = OrderedDict()
        self._known_groups: dict[str, tuple[str, str, tuple[int, ...]]] = {}
        self._patches = ExitStack()

    def __enter__(self) -> "Communication":
        watched = {
            method: self._watched(method, getattr(ProcessGroup, method))
            for method in _NAMES
            if method in vars(ProcessGroup)
        }
        self._patches.enter_context(replaced(ProcessGroup, **watched))
        self._patches.enter_context(replaced(Work, wait=self._watched_wait(Work.wait)))
        operators = torch.ops._c10d_functional
        for name, method in _OPERATORS.items():
            self._watch_operator(getattr(operators, name).default, partial(self._start, method))
        self._watch_operator(operators.wait_tensor.default, self._wait_for_tensor)
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()

    @property
    def part(self) -> str:
        """Part of the step to which collectives are counted."""
        return self._span.part

    @part.setter
    def part(self, part: str) -> None:
        self._span = Span(part, True)

    @property
    def current(self) -> Collective | None:
        """Collective that the host waits in or that the device has not finished.

        Any thread may ask.
        """
        if self._waiting is not None:
            return self._waiting
        try:
            mark, collective = self._unfinished[0]
        except IndexError:  # the training thread has removed it
            return None
        return None if self.clock.is_past(mark) else collective

    def counts(self) -> dict[str, int]:
        """Return the number of collectives started, by key; any thread may ask."""
        return self._counts.copy()

    def _watched(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: ProcessGroup, *arguments: Any, **options: Any) -> Any:
            collective = self._note(method, group, arguments)
            work = self._timed(collective, original, group, *arguments, **options)
            if work is not None:
                _keep(self._by_work, id(work), collective)
            return work

        return call

    def _watched_wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Work, *arguments: Any, **options: Any) -> Any:
            collective = self._by_work.pop(id(work), self.last)
            return self._timed(collective, original, work, *arguments, **options)

        return wait

    def _watch_operator(self, operator: Any, call: Callable[..., Tensor]) -> None:
        """Replace what an operator calls, outside compiled graphs and in them."""
        watched = _WatchedOperator(operator._op, call)
        self._patches.enter_context(replaced(operator, _op=watched))

    def _start(self, method: str, original: Callable[..., Tensor], *arguments: Any) -> Tensor:
        group = resolve_process_group(arguments[-1])
        collective = self._note(method, group, arguments)
        output: Tensor = self._timed(collective, original, *arguments)
        _keep(self._by_storage, output.untyped_storage().data_ptr(), collective)
        return output

    def _wait_for_tensor(self, original: Callable[..., Tensor], output: Tensor) -> Tensor:
        collective = self._by_storage.pop(output.untyped_storage().data_ptr(), self.last)
        waited: Tensor = self._timed(collective, original, output)
        return waited

    def _timed(
        self,
        collective: Collective | None,
        call: Callable[..., Any],
        *arguments: Any,
        **options: Any,
    ) -> Any:
        clock = self.clock
        begin = clock.now()
        self._waiting = collective
        # If the call raises, the rank ends, and `current` remains this collective.
        result = call(*arguments, **options)
        self._waiting = None
        end = clock.now()
        clock.add(self._span, begin, end)
        unfinished = self._unfinished
        while unfinished and clock.is_past(unfinished[0][0]):
            unfinished.popleft()
        if collective is not None and not clock.is_past(end):
            unfinished.append((end, collective))
        return result

    def _note(self, method: str, group: ProcessGroup, arguments: tuple[Any, ...]) -> Collective:
        name = _NAMES[method]
        key, words, members = self._describe(group)
        if name in ("send", "receive"):
            peer = members[arguments[1]]
            ends = (self._groups.rank, peer) if name == "send" else (peer, self._groups.rank)
            key, members = f"{ends[0]}>{ends[1]}", ends
            words = f"to rank {peer}" if name == "send" else f"from rank {peer}"
        number = self._counts.get(key, 0) + 1
        self._counts[key] = number
        self.last = Collective(
            name=name,
            group=words,
            key=key,
            members=members,
            number=number,
            num_bytes=_num_bytes(arguments[0]) if arguments else 0,
        )
        return self.last

    def _describe(self, group: ProcessGroup) -> tuple[str, str, tuple[int, ...]]:
        name = group.group_name
        if name not in self._known_groups:
            members = tuple(dist.get_process_group_ranks(group))
            words = describe_members(members, self._groups)
            key = f"{words}, {len(members)} from {members[0]} to {members[-1]}"
            self._known_groups[name] = key, f"of {words}", members
        return self._known_groups[name]


class _WatchedOperator:
    """Function of an operator while a record is open; unchanged while a compiler traces it."""

    def __init__(self, original: Callable[..., Tensor], call: Callable[..., Tensor]) -> None:
        self._original = original
        self._call = call
        self._is_running = False

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        # A compiler has stand-ins for tensors; a dispatch mode calls the operator again.
        if options or self._is_running or type(arguments[0]) is not Tensor:
            return self._original(*arguments, **options)
        self._is_running = True
        try:
            return self._call(self._original, *arguments)
        finally:
            self._is_running = False

    def __hash__(self) -> int:
        return hash(self._original)  # torch looks operators up by it


def _keep(open_collectives: OrderedDict[int, Collective], key: int, collective: Collective) -> None:
    open_collectives[key] = collective
    if len(open_collectives) > _MAX_OPEN_WORKS:
        open_collectives.popitem(last=False)


def describe_members(members: Sequence[int], groups: Groups) -> str:
    """Describe a group by the axes of the layout along which its ranks differ.

    Args:
        members: ranks of the group.
        groups: any rank's groups, which give the layout.
    """
    if len(members) == groups.world_size:
        return "all ranks"
    coordinates = [coordinates_of(member, groups) for member in members]
    axes = [
        axis
        for axis, values in zip(Coordinates._fields, zip(*coordinates, strict=True), strict=True)
        if len(set(values)) > 1
    ]
    return f"the {' and '.join(axes) or 'one-rank'} group"


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_num_bytes, value))
    return 0
