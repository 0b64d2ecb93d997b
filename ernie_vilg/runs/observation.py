"""Result of work beside training, for the tracker; observers of a step while it is made."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Result of a callback, for the tracker."""

    metrics: Mapping[str, Any]
    """Figures by name."""
    pictures: Mapping[str, Path]
    """Picture files in the run folder by the name that they are tracked under."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """Text below a picture, by the picture's name."""
    ends_run: str = ""
    """Why the run is complete before its last step, the same on every rank; "" if it is not."""


@runtime_checkable
class ObservesSteps(Protocol):
    """A callback that also observes steps while they are made."""

    def around(self, engine: Any, step: int) -> AbstractContextManager[None]:
        """Return the context in which a step is made; all ranks must enter it.

        Args:
            engine: weights and optimizer, which the context must not change.
            step: the step, from 1.
        """
