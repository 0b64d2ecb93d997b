"""Where the seconds of a step go: data, forward, backward, optimizer, communication, and the rest.

The parts do not overlap. What a rank spends in collectives, its waiting for other ranks included,
is communication wherever it happens, and is missing from the part that it happens in; the loss
belongs to the forward pass, recomputed activations to the backward pass. Their sum is the step: on
a CPU exactly, on a GPU as far as the host does not run ahead of it.

Source: ours.
"""

import time
from collections import Counter
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
"""DeepSpeed's instructions to a stage; the others send and receive."""


class StepTimes:
    """Adds up the parts of steps between two log lines."""

    def __init__(self, communication: Communication, optimizer_calls_per_step: int) -> None:
        """Begin to count.

        Args:
            communication: open; tells the time spent in collectives.
            optimizer_calls_per_step: calls of what `timed` is told to be the optimizer.
        """
        self.work_seconds_per_step = 0.0
        """Wall-clock seconds per step without communication, before the last `read`."""
        self._communication = communication
        self._calls_per_step = optimizer_calls_per_step
        self._calls: Counter[str] = Counter()
        self._open: tuple[str, Any] | None = None
        self._paused_seconds = 0.0
        self._since = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return the seconds per step since the last call, nothing if there was no step."""
        spans = self._communication.clock.read()
        now = time.perf_counter()
        wall = now - self._since - self._paused_seconds
        steps = self._calls[OPTIMIZER] / self._calls_per_step
        self._since, self._paused_seconds, self._calls = now, 0.0, Counter()
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
        """Count what happens inside as data."""
        self.begin(DATA)
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside: saving, drawing, all that is no step."""
        begun = time.perf_counter()
        self._communication.part = _PAUSED
        try:
            yield
        finally:
            self._communication.part = ""
            self._paused_seconds += time.perf_counter() - begun

    def begin(self, part: str) -> None:
        """End the part that is being counted, and begin another."""
        self.end()
        self._open = part, self._communication.clock.now()
        self._communication.part = part

    def end(self) -> None:
        """End the part that is being counted, if there is one."""
        if self._open is not None:
            part, begun = self._open
            clock = self._communication.clock
            clock.add(Span(part, False), begun, clock.now())
        self._open = None
        self._communication.part = ""

    def timed(
        self, part: str, call: Callable[..., Any], *, stays_open: bool = False
    ) -> Callable[..., Any]:
        """Return `call`, counted as a part; with `stays_open` the part lasts until the next."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.begin(part)
            try:
                return call(*arguments, **options)
            finally:
                if not stays_open:
                    self.end()
                self._calls[part] += 1

        return counted


@contextmanager
def instrument(engine: Engine, communication: Communication) -> Iterator[StepTimes]:
    """Time an engine's steps while the block runs.

    Args:
        engine: plain or pipeline.
        communication: open.
    """
    inner = engine.deepspeed_engine
    instructions = getattr(inner, "_INSTRUCTION_MAP", None)
    step_times = StepTimes(communication, 1 if instructions else engine.num_micro_batches)
    if instructions:
        wrapped = {
            kind: step_times.timed(_PART_OF_INSTRUCTION[kind.__name__], method)
            if kind.__name__ in _PART_OF_INSTRUCTION
            else method
            for kind, method in instructions.items()
        }
        attributes: dict[str, Any] = {"_INSTRUCTION_MAP": wrapped}
    else:
        attributes = {
            "forward": step_times.timed(FORWARD, inner.forward, stays_open=True),  # the loss too
            "backward": step_times.timed(BACKWARD, inner.backward),
            "step": step_times.timed(OPTIMIZER, inner.step),
        }
    with replaced(inner, **attributes):  # on the instance, in front of its class's
        yield step_times
