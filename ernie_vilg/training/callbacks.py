"""Work between two steps that looks at the model and leaves it as it is: samples, health.

Every rank runs a `Callback` and sees the engine. `OnWholeWeights` is the callback for work of the
leader alone: it gathers the weights there, and the other ranks wait, for longer than a step may
take.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from torch import Tensor
from torch.distributed import ProcessGroup

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import barrier
from ernie_vilg.parallel.state.gather import gather_to_leader
from ernie_vilg.runs.observation import Observation, ObservesSteps
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.tracking.tracker import Tracker

Config = TypeVar("Config")
Trained = TypeVar("Trained")


@dataclass(frozen=True, kw_only=True)
class StepBoundary(Generic[Config, Trained]):
    """Moment between two steps."""

    config: Config
    """The run."""
    engine: Trained
    """Weights and optimizer; a callback must not change them."""
    step: int
    """Steps taken."""
    should_stop: Callable[[], bool]
    """Whether a stop was requested on this rank; long work asks it again and again."""


class Callback(Protocol[Config, Trained]):
    """Work that is due every so many steps."""

    @property
    def every(self) -> int:
        """Interval in steps; 0: never."""

    @property
    def phase(self) -> Phase:
        """Phase of every rank meanwhile."""

    def run(self, boundary: StepBoundary[Config, Trained]) -> Observation | None:
        """Do the work; all ranks must call. The leader's result is tracked, None is not."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Config, Trained]):
    """A callback that is a function."""

    every: int = 0
    """Interval in steps; 0: never."""
    phase: Phase
    """Phase of every rank meanwhile."""
    run: Callable[[StepBoundary[Config, Trained]], Observation | None]
    """The work."""


@dataclass(frozen=True, kw_only=True)
class OnWholeWeights:
    """A callback that gives the transformer's gathered weights to a function on the leader."""

    every: int
    """Interval in steps; 0: never."""
    phase: Phase
    """Phase of every rank meanwhile."""
    observe: Callable[
        [PretrainConfig, int, dict[str, Tensor], Callable[[], bool]], Observation | None
    ]
    """Function of the run, the steps taken, the whole weights and whether to stop; returns None
    where it was stopped."""

    def run(self, boundary: StepBoundary[PretrainConfig, Engine]) -> Observation | None:
        """Gather the weights, and observe them on the leader; all ranks must call."""
        weights = gather_to_leader(boundary.engine)
        if weights is None:
            return None
        return self.observe(boundary.config, boundary.step, weights, boundary.should_stop)


@dataclass(frozen=True, kw_only=True)
class BeforeFirstStep(Generic[Config, Trained]):
    """A callback that runs before the first step of a run, not of a start that resumes it."""

    callback: Callback[Config, Trained]
    """The work."""
    every: int = 0
    """Never between two steps."""

    @property
    def phase(self) -> Phase:
        """Phase of the callback."""
        return self.callback.phase

    def run(self, boundary: StepBoundary[Config, Trained]) -> Observation | None:
        """Run the callback at step 0; all ranks must call."""
        return None if boundary.step else self.callback.run(boundary)


@dataclass(frozen=True, kw_only=True)
class PretrainCallbacks:
    """The work of a pretraining run besides its steps, each in its order."""

    first: Sequence[Callback[PretrainConfig, Engine]] = ()
    """Work before the first step of a start."""
    between: Sequence[Callback[PretrainConfig, Engine]] = ()
    """Work between two steps."""
    last: Sequence[Callback[PretrainConfig, Engine]] = ()
    """Work after the last step, when it is saved."""


NO_CALLBACKS = PretrainCallbacks()


@dataclass(kw_only=True)
class Callbacks(Generic[Config, Trained]):
    """The callbacks of one run."""

    config: Config
    """The run."""
    engine: Trained
    """Weights and optimizer."""
    callbacks: Sequence[Callback[Config, Trained]]
    """Callbacks in the order in which they run."""
    first: Sequence[Callback[Config, Trained]] = ()
    """Callbacks that run once before the first step of this start."""
    last: Sequence[Callback[Config, Trained]] = ()
    """Callbacks that run once more when all steps are made and saved."""
    tracker: Tracker
    """Destination of their results."""
    phases: Phases
    """Record of this rank's phase."""
    should_stop: Callable[[], bool]
    """Whether a stop was requested on this rank."""
    group: ProcessGroup
    """All ranks, with the timeout of a phase."""
    ends_run: str = field(init=False, default="")
    """Why the run is complete before its last step; "" if it is not."""

    def at_start(self, step: int) -> None:
        """Run the first callbacks; all ranks must call."""
        for callback in self.first:
            self._run(callback, step)

    @contextmanager
    def around_step(self, step: int) -> Iterator[None]:
        """Let callbacks observe the step that is made within; all ranks must enter."""
        with ExitStack() as contexts:
            for callback in self.callbacks:
                if isinstance(callback, ObservesSteps):
                    contexts.enter_context(callback.around(self.engine, step))
            yield

    def after_step(self, step: int) -> None:
        """Run the callbacks that are due after a step; all ranks must call."""
        for callback in self.callbacks:
            if callback.every and step % callback.every == 0:
                self._run(callback, step)

    def at_end(self, step: int) -> None:
        """Run the last callbacks; all ranks must call."""
        for callback in self.last:
            self._run(callback, step)

    def _run(self, callback: Callback[Config, Trained], step: int) -> None:
        self.phases.enter(callback.phase, step)
        seen = callback.run(
            StepBoundary(
                config=self.config, engine=self.engine, step=step, should_stop=self.should_stop
            )
        )
        if seen is not None:
            self.ends_run = self.ends_run or seen.ends_run
            if seen.pictures:
                self.tracker.log_pictures(step, seen.pictures, seen.captions)
            self.tracker.log(step, seen.metrics)
        barrier(self.group)
