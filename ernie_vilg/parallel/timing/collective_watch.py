"""What this rank last said to others, and how long it waits for them.

Every collective that Python starts, be it torch's, DeepSpeed's, megatron-core's or ours, is a call
of a method of torch's `ProcessGroup`, and every wait one of `Work.wait`. While a `Communication` is
open it stands between the two. Collectives on the same ranks are counted: ranks call them in the
same order, so whoever has started fewer is the one that the others wait for.

Source: ours, on torch.distributed.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
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
"""torch.distributed's word for each method; no release of torch has all of them."""

_MAX_OPEN_WORKS = 256
"""Asynchronous collectives remembered until somebody waits for them; some never are waited for."""


class Collective(NamedTuple):
    """One call, as the ranks that take part in it know it."""

    name: str
    """Such as all_reduce."""
    group: str
    """Who takes part, in words."""
    key: str
    """Names those who take part; the same on each of them."""
    members: tuple[int, ...]
    """Ranks that take part."""
    number: int
    """Counts the calls with this key, from 1."""
    num_bytes: int
    """Size of what is passed in."""

    def __str__(self) -> str:
        return f"{self.name} {self.group} (number {self.number}, {self.num_bytes:,} bytes)"


class Communication:
    """Takes note of this rank's collectives while it is open, one at a time in a process."""

    def __init__(self, groups: Groups, clock: SpanClock | None = None) -> None:
        """Take note of nothing yet.

        Args:
            groups: this rank's place.
            clock: adds up the seconds; by default that of the rank's device.
        """
        self.clock = clock or clock_of(groups.device)
        self._span = Span("", True)
        self._groups = groups
        self._counts: dict[str, int] = {}
        self._last: Collective | None = None
        self._waits_in: Collective | None = None
        self._unfinished: deque[tuple[Any, Collective]] = deque()
        self._of_work: OrderedDict[int, Collective] = OrderedDict()
        self._places: dict[str, tuple[str, str, tuple[int, ...]]] = {}
        self._patches = ExitStack()

    def __enter__(self) -> "Communication":
        watched = {
            method: self._watched(method, getattr(ProcessGroup, method))
            for method in _NAMES
            if method in vars(ProcessGroup)
        }
        self._patches.enter_context(replaced(ProcessGroup, **watched))
        self._patches.enter_context(replaced(Work, wait=self._watched_wait(Work.wait)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patches.close()

    @property
    def part(self) -> str:
        """Part of the step that collectives happen in."""
        return self._span.part

    @part.setter
    def part(self, part: str) -> None:
        self._span = Span(part, True)

    @property
    def last(self) -> Collective | None:
        """The collective started last."""
        return self._last

    @property
    def current(self) -> Collective | None:
        """The collective that the host waits in or that the device has not finished; from any
        thread.
        """
        if self._waits_in is not None:
            return self._waits_in
        try:
            mark, collective = self._unfinished[0]
        except IndexError:  # the other thread was faster
            return None
        return None if self.clock.is_past(mark) else collective

    def counts(self) -> dict[str, int]:
        """Return the collectives started so far by key; from any thread."""
        return self._counts.copy()

    def _watched(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: ProcessGroup, *arguments: Any, **options: Any) -> Any:
            collective = self._note(method, group, arguments)
            work = self._timed(collective, original, group, arguments, options)
            if work is not None:
                self._of_work[id(work)] = collective
                if len(self._of_work) > _MAX_OPEN_WORKS:
                    self._of_work.popitem(last=False)
            return work

        return call

    def _watched_wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Work, *arguments: Any, **options: Any) -> Any:
            collective = self._of_work.pop(id(work), self._last)
            return self._timed(collective, original, work, arguments, options)

        return wait

    def _timed(
        self,
        collective: Collective | None,
        call: Callable[..., Any],
        receiver: ProcessGroup | Work,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        clock = self.clock
        begin = clock.now()
        self._waits_in = collective
        # Where this raises, the rank ends, and the collective is what it waited for.
        result = call(receiver, *arguments, **options)
        self._waits_in = None
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
        key, words, members = self._place(group)
        if name in ("send", "receive"):
            peer = members[arguments[1]]
            ends = (self._groups.rank, peer) if name == "send" else (peer, self._groups.rank)
            key, members = f"{ends[0]}>{ends[1]}", ends
            words = f"to rank {peer}" if name == "send" else f"from rank {peer}"
        number = self._counts.get(key, 0) + 1
        self._counts[key] = number
        self._last = Collective(
            name=name,
            group=words,
            key=key,
            members=members,
            number=number,
            num_bytes=_num_bytes(arguments[0]) if arguments else 0,
        )
        return self._last

    def _place(self, group: ProcessGroup) -> tuple[str, str, tuple[int, ...]]:
        name = group.group_name
        if name not in self._places:
            members = tuple(dist.get_process_group_ranks(group))
            words = describe_members(members, self._groups)
            key = f"{words}, {len(members)} from {members[0]} to {members[-1]}"
            self._places[name] = key, f"of {words}", members
        return self._places[name]


def describe_members(members: Sequence[int], groups: Groups) -> str:
    """Say who is in a group: the axes of the layout along which its ranks differ.

    Args:
        members: their ranks.
        groups: gives the layout.
    """
    if len(members) == groups.world_size:
        return "all ranks"
    places = [coordinates_of(member, groups) for member in members]
    axes = [
        axis
        for axis, values in zip(Coordinates._fields, zip(*places, strict=True), strict=True)
        if len(set(values)) > 1
    ]
    return f"the {' and '.join(axes) or 'one-rank'} group"


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_num_bytes, value))
    return 0
