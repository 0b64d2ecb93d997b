"""Seconds are added up by span; on a GPU once it has passed both events."""

import pytest

from ernie_vilg.parallel.timing.span_clock import DeviceClock, Span

FORWARD = Span("forward", False)
COMMUNICATION = Span("forward", True)


class Device:
    """A fake GPU that passes events only when told to, at a millisecond each."""

    def __init__(self) -> None:
        self.events = 0
        self.is_past = 0

    def make_event(self) -> "Event":
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._number = 0

    def record(self) -> None:
        self._device.events += 1
        self._number = self._device.events

    def query(self) -> bool:
        return self._number <= self._device.is_past

    def synchronize(self) -> None:
        self._device.is_past = max(self._device.is_past, self._number)

    def elapsed_time(self, end: "Event") -> float:
        assert end.query(), "an event that has not happened has no time"
        return float(end._number - self._number)


def test_events_are_counted_without_waiting_and_read_with_it() -> None:
    device = Device()
    clock = DeviceClock(device.make_event, is_main_stream=lambda: True)
    begin, inner, inner_end, end = (clock.now() for _ in range(4))

    clock.add(COMMUNICATION, inner, inner_end)
    clock.add(FORWARD, begin, end)

    assert device.is_past == 0, "nobody has waited"
    assert not clock.is_past(end)
    assert clock.read() == {COMMUNICATION: pytest.approx(0.001), FORWARD: pytest.approx(0.003)}
    assert clock.read() == {}


def test_work_on_a_side_stream_is_not_counted() -> None:
    clock = DeviceClock(Device().make_event, is_main_stream=lambda: False)

    clock.add(COMMUNICATION, clock.now(), clock.now())

    assert clock.read() == {}
