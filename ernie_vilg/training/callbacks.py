"""What is made of the whole weights while they train: samples, health.

The leader gathers the weights and works; the other ranks wait for it, longer than they would in a
step.

Source: ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import barrier
from ernie_vilg.parallel.state.gather import gather_to_leader
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.tracking.tracker import Tracker


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen in the weights of one step."""

    metrics: Mapping[str, Any]
    """Figures by name."""
    pictures: Mapping[str, Path]
    """Picture files in the run folder by the name that they are tracked under."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """What to write below a picture, by its name."""


Observe = Callable[[PretrainConfig, int, dict[str, Tensor], Callable[[], bool]], Observation | None]
"""(the run, step, whole weights, whether to stop) to an observation, None where it was asked to
stop; runs on the leader."""


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Something that is observed every so many steps."""

    every: int
    """Steps; 0: never."""
    phase: Phase
    """What the ranks are doing meanwhile."""
    observe: Observe
    """Does it."""


@dataclass(frozen=True, kw_only=True)
class Observers:
    """All that is observed in one run."""

    config: PretrainConfig
    """The run."""
    engine: Engine
    """Whose weights are looked at."""
    observers: tuple[Observer, ...]
    """What looks at them."""
    tracker: Tracker
    """Where it goes."""
    phases: Phases
    """Hears of it."""
    should_stop: Callable[[], bool]
    """Whether somebody wants the run to stop."""
    patience: ProcessGroup
    """Of all ranks, with time to wait."""

    def after_step(self, step: int) -> None:
        """Observe what is due after a step; all ranks must call."""
        for observer in self.observers:
            if observer.every and step % observer.every == 0:
                self.phases.enter(observer.phase, step)
                self._observe(observer, step)

    def _observe(self, observer: Observer, step: int) -> None:
        weights = gather_to_leader(self.engine)
        if weights is not None:
            seen = observer.observe(self.config, step, weights, self.should_stop)
            if seen is not None:
                self.tracker.log_pictures(step, seen.pictures, seen.captions)
                self.tracker.log(step, seen.metrics)
        barrier(self.patience)
