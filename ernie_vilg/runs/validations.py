"""The figures of a run's validations, step by step, and the best of them.

`validation.jsonl` in the run folder has one line per validation. A run that goes back to a
checkpoint validates some steps again: of several lines of a step, the last counts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.config.schema import from_json
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.jsonl import append_records, read_records


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One line of the file."""

    step: int
    """Steps taken."""
    figures: Mapping[str, float | None]
    """Losses by name, such as held_out/loss; None where one was not finite."""


def append_validation(path: Path, step: int, figures: Mapping[str, float]) -> None:
    """Write down a validation.

    Args:
        path: `RunFolder.validations`.
        step: steps taken.
        figures: losses by name.
    """
    append_records(path, [{"step": step, "figures": dict(figures)}])


def read_validations(path: Path, figure: str) -> dict[int, float]:
    """Return the values of a figure by step, in the order of the steps.

    Args:
        path: `RunFolder.validations`; it may be absent.
        figure: name of the figure; infinity stands where it was not finite.
    """

    def take(record: dict[str, Any], name: str) -> Validation:
        return from_json(record, Validation, name)

    lines, _ = read_records(path, take)
    values = {line.step: line.figures[figure] for line in lines if figure in line.figures}
    return {step: math.inf if value is None else value for step, value in sorted(values.items())}


def best_step(values: Mapping[int, float], steps: Iterable[int]) -> int | None:
    """Return the step with the lowest value, the first of equals; None if no step has one.

    Args:
        values: values by step; infinity and NaN are never the best.
        steps: steps that compete.
    """
    found = [step for step in sorted(steps) if math.isfinite(values.get(step, math.inf))]
    return min(found, key=lambda step: values[step], default=None)


def best_checkpoint(folder: RunFolder, figure: str | None, steps: Sequence[int]) -> int | None:
    """Return the step of the best of a run's checkpoints; None if none has the figure.

    Args:
        folder: the run's folder.
        figure: `validation.best`; None: no checkpoint is the best.
        steps: steps of the checkpoints.
    """
    if figure is None:
        return None
    return best_step(read_validations(folder.validations, figure), steps)
