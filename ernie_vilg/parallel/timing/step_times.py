"""Splits the seconds of a step: data, forward, backward, optimizer, communication and other.

The parts do not overlap. Time in collectives, waiting for other ranks included, counts as
communication and not to the part that the collective is in. The loss belongs to the forward pass,
recomputed activations to the backward pass. The parts add up to the step: on a CPU exactly, on a
GPU as far as the host does not run ahead of it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.library_patches import replaced
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.span_clock import Span

DATA = "data"
FORWARD = "forward"
BACKWARD = "backward"
OPTIMIZER = "optimizer"
_PAUSED = "paused"

_PART_OF_INSTRUCTION = {
    "LoadMicroBatch": FORWARD,
    "ForwardPass": FORWARD,
    "BackwardPass": BACKWARD,
    "ReduceTiedGrads": BACKWARD,
    "ReduceGrads": BACKWARD,
    "OptimizerStep": OPTIMIZER,
}
"""Parts of DeepSpeed's instructions to a stage; the other instructions send and receive."""


class StepTimes:
    """Adds up the parts of the steps between two log lines."""

    def __init__(self, communication: Communication) -> None:
        """Start counting.

        Args:
            communication: open record, whose clock has the time spent in collectives.
        """
        self.work_seconds_per_step = 0.0
        """Wall-clock seconds per step without communication, before the last `read`."""
        self._communication = communication
        self._num_steps = 0
        self._open: tuple[str, Any] | None = None
        self._paused_seconds = 0.0
        self._since = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return the seconds per step since the last call; empty if there was no step."""
        spans = self._communication.clock.read()
        now = time.perf_counter()
        wall = now - self._since - self._paused_seconds
        steps, self._num_steps = self._num_steps, 0
        self._since, self._paused_seconds = now, 0.0
        if not steps:
            return {}
        seconds = {
            part: max(0.0, spans.get(Span(part, False), 0.0) - spans.get(Span(part, True), 0.0))
            for part in (DATA, FORWARD, BACKWARD, OPTIMIZER)
        }
        seconds["communication"] = sum(
            value for span, value in spans.items() if span.is_communication and span.part != _PAUSED
        )
        seconds["other"] = max(0.0, wall - sum(seconds.values()))
        self.work_seconds_per_step = max(0.0, wall - seconds["communication"]) / steps
        return {f"{part}_seconds_per_step": value / steps for part, value in seconds.items()}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count the block as data; each step begins with one."""
        self._num_steps += 1
        self.begin(DATA)
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the block, which is no part of a step, such as saving or drawing."""
        begun = time.perf_counter()
        self._communication.part = _PAUSED
        try:
            yield
        finally:
            self._communication.part = ""
            self._paused_seconds += time.perf_counter() - begun

    def begin(self, part: str) -> None:
        """End the current part, if any, and begin another."""
        self.end()
        self._open = part, self._communication.clock.now()
        self._communication.part = part

    def end(self) -> None:
        """End the current part, if any."""
        if self._open is not None:
            part, begun = self._open
            clock = self._communication.clock
            clock.add(Span(part, False), begun, clock.now())
        self._open = None
        self._communication.part = ""

    def timed(
        self, part: str, call: Callable[..., Any], *, stays_open: bool = False
    ) -> Callable[..., Any]:
        """Return `call` timed as a part; with `stays_open` the part lasts until the next one."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.begin(part)
            try:
                return call(*arguments, **options)
            finally:
                if not stays_open:
                    self.end()

        return counted


@contextmanager
def instrument(engine: Engine, communication: Communication) -> Iterator[StepTimes]:
    """Time an engine's steps in the block.

    Args:
        engine: plain or pipeline.
        communication: open record of its collectives.
    """
    inner = engine.deepspeed_engine
    instructions = getattr(inner, "_INSTRUCTION_MAP", None)
    if not instructions:
        methods = instrument_methods(
            inner,
            communication,
            forward="forward",
            backward="backward",
            optimizer="step",
        )
        with methods as step_times:
            yield step_times
    else:
        step_times = StepTimes(communication)
        wrapped = {
            kind: step_times.timed(_PART_OF_INSTRUCTION[kind.__name__], method)
            if kind.__name__ in _PART_OF_INSTRUCTION
            else method
            for kind, method in instructions.items()
        }
        with replaced(inner, _INSTRUCTION_MAP=wrapped):  # on the instance, before the class
            yield step_times


@contextmanager
def instrument_methods(
    engine: Any,
    communication: Communication,
    *,
    forward: str,
    backward: str,
    optimizer: str,
) -> Iterator[StepTimes]:
    """Time an engine's steps in the block by three of its methods.

    Args:
        engine: any object.
        communication: open record of its collectives.
        forward: name of the method that begins a forward pass, which lasts until the next part and
            so includes the loss.
        backward: name of the method that makes a backward pass.
        optimizer: name of the method that updates the weights.
    """
    step_times = StepTimes(communication)
    timed = {
        forward: step_times.timed(FORWARD, getattr(engine, forward), stays_open=True),
        backward: step_times.timed(BACKWARD, getattr(engine, backward)),
        optimizer: step_times.timed(OPTIMIZER, getattr(engine, optimizer)),
    }
    with replaced(engine, **timed):  # on the instance, before the class
        yield step_times
