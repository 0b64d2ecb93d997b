"""Measures the parts of a step, on the host, or on a GPU without synchronizing it.

On a CPU a call ends when its work does, so the host's clock measures it. A GPU works long after the
call: there a mark is an event in its queue, and the seconds are known once the GPU has passed it.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Span(NamedTuple):
    """A kind of work that seconds are counted for."""

    part: str
    """Part of the step; empty between parts."""
    is_communication: bool
    """Whether the seconds were spent in a collective within that part."""


class SpanClock(ABC):
    """Adds up seconds by span."""

    def __init__(self) -> None:
        self._seconds: dict[Span, float] = {}

    @abstractmethod
    def now(self) -> Any:
        """Return a mark of the current point of the work."""

    @abstractmethod
    def is_past(self, mark: Any) -> bool:
        """Return whether the work has passed a mark; any thread may ask."""

    @abstractmethod
    def add(self, span: Span, begin: Any, end: Any) -> None:
        """Add the time between two marks."""

    def read(self) -> dict[Span, float]:
        """Return the seconds since the last call; waits for all work so far."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _count(self, span: Span, seconds: float) -> None:
        self._seconds[span] = self._seconds.get(span, 0.0) + seconds


class HostClock(SpanClock):
    """The clock of work on the host."""

    def now(self) -> float:
        """Return the seconds of a monotonic clock."""
        return time.perf_counter()

    def is_past(self, mark: float) -> bool:
        """Return True, as work on the host has passed every mark."""
        return True

    def add(self, span: Span, begin: float, end: float) -> None:
        """Add the time between two marks."""
        self._count(span, end - begin)


class DeviceClock(SpanClock):
    """The clock of work on a GPU.

    Work on side streams, such as ZeRO 3's prefetching, overlaps with the computation and is not
    counted.
    """

    def __init__(
        self,
        make_event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True),
        is_main_stream: Callable[[], bool] = lambda: (
            torch.cuda.current_stream() == torch.cuda.default_stream()
        ),
    ) -> None:
        super().__init__()
        self._make_event = make_event
        self._is_main_stream = is_main_stream
        self._pending: deque[tuple[Span, Any, Any]] = deque()

    def now(self) -> Any:
        """Return an event in the queue of the current stream."""
        event = self._make_event()
        event.record()
        return event

    def is_past(self, mark: Any) -> bool:
        """Return whether the GPU has passed an event."""
        return bool(mark.query())

    def add(self, span: Span, begin: Any, end: Any) -> None:
        """Add the time between two events, once the GPU has passed them."""
        if self._is_main_stream():
            self._pending.append((span, begin, end))
        while self._pending and self.is_past(self._pending[0][2]):
            self._fold()

    def read(self) -> dict[Span, float]:
        """Return the seconds since the last call; waits for the GPU."""
        while self._pending:
            self._pending[0][2].synchronize()
            self._fold()
        return super().read()

    def _fold(self) -> None:
        span, begin, end = self._pending.popleft()
        self._count(span, begin.elapsed_time(end) / 1000)  # from milliseconds


def clock_of(device: torch.device) -> SpanClock:
    """Return the clock of a device."""
    return DeviceClock() if device.type == "cuda" else HostClock()
