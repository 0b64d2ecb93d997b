"""Charts of a sweep: the last losses of its jobs against each swept setting.

Numbers have an axis, logarithmic where they are spaced so, as 1e-3,3e-4,1e-4 are; other values have
bars. Jobs that differ in the other settings too are lines, or bars beside each other.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from ernie_vilg.evaluation.charts import (
    COLOURS,
    DASHES,
    MOST_LINES,
    add_legend,
    ascii_text,
    curves,
    make_logarithmic,
    svg_chart,
)
from ernie_vilg.evaluation.run_report.run_charts import Chart
from ernie_vilg.evaluation.validation_charts import DIRECTIONS, held_out_names

_INCHES = (5.2, 3.4)
_BAR_WIDTH = 0.8
_LOSSES = {"loss": "weighted sum", **DIRECTIONS}
_LONGEST_NAME = 28
_MOST_TICKS = 8


@dataclass(frozen=True, kw_only=True)
class SweptJob:
    """One job of a sweep."""

    values: Mapping[str, str]
    """Its values by key, of the settings that have several, as they were typed."""
    losses: Mapping[str, float]
    """Its last losses, by their names in words; empty where it has logged none."""


def last_losses_in_words(jobs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, float]]:
    """Return the last losses of each job: held-out ones if some job has any, else training's.

    Args:
        jobs: entries of `charts.read_metrics` of each.
    """
    sets = sorted({name for entries in jobs for name in held_out_names(entries)})
    names = {
        f"validation/{name}/{key}": f"held out ({name}), {words}"
        for name in sets
        for key, words in _LOSSES.items()
    }
    names = names or {key: f"training, {words}" for key, words in _LOSSES.items()}
    return [{curve.label: curve.values[-1] for curve in curves(entries, names)} for entries in jobs]


def sweep_charts(jobs: Sequence[SweptJob]) -> list[Chart]:
    """Draw each loss that some job has against each swept setting.

    Args:
        jobs: jobs of one sweep, at least one.
    """
    losses = dict.fromkeys(name for job in jobs for name in job.losses)
    return [_chart(jobs, key, loss) for key in jobs[0].values for loss in losses]


def _chart(jobs: Sequence[SweptJob], key: str, loss: str) -> Chart:
    groups: dict[str, dict[str, float]] = {}
    for job in jobs:
        if loss in job.losses:
            others = [
                f"{_short(name)}={value}" for name, value in job.values.items() if name != key
            ]
            groups.setdefault(", ".join(others), {})[job.values[key]] = job.losses[loss]
    values = list(dict.fromkeys(job.values[key] for job in jobs))
    title = f"{_short(key)}: {loss}"
    numbers = _numbers(values)
    with svg_chart(ascii_text(title), inches=_INCHES) as (axes, content):
        if numbers is None:
            _draw_bars(axes, groups, values)
        else:
            _draw_points(axes, groups, numbers)
        axes.set_xlabel(ascii_text(key))
        axes.set_ylabel("loss, last")
        if len(groups) > 1 and len(groups) <= MOST_LINES:
            add_legend(axes, columns=2)
    return content.getvalue(), _describe(title, groups)


def _draw_points(
    axes: Axes, groups: Mapping[str, Mapping[str, float]], numbers: Mapping[str, float]
) -> None:
    """Draw a line per group; dots alone where they are more than a chart tells apart."""
    are_apart = len(groups) <= MOST_LINES
    for index, (name, found) in enumerate(groups.items()):
        points = sorted((numbers[value], loss) for value, loss in found.items())
        axes.plot(
            [number for number, _ in points],
            [loss for _, loss in points],
            label=ascii_text(name),
            marker="o",
            markersize=5,
            linestyle=DASHES[index // len(COLOURS)] if are_apart else "",
            color=COLOURS[index % len(COLOURS)] if are_apart else COLOURS[0],
        )
    if is_logarithmic(list(numbers.values())):
        make_logarithmic(axes, "x")
    if len(numbers) <= _MOST_TICKS:
        axes.set_xticks(list(numbers.values()), list(numbers))
        axes.xaxis.set_minor_locator(NullLocator())
    if min(loss for found in groups.values() for loss in found.values()) > 0:
        make_logarithmic(axes, "y")


def _draw_bars(
    axes: Axes, groups: Mapping[str, Mapping[str, float]], values: Sequence[str]
) -> None:
    """Draw a bar per value and group, in the order of the values."""
    width = _BAR_WIDTH / len(groups)
    for index, (name, found) in enumerate(groups.items()):
        shift = (index - (len(groups) - 1) / 2) * width
        axes.bar(
            [values.index(value) + shift for value in found],
            list(found.values()),
            width=width,
            label=ascii_text(name),
            color=COLOURS[(index + 1) % len(COLOURS)] if len(groups) <= MOST_LINES else COLOURS[1],
            hatch="//" if len(COLOURS) <= index < MOST_LINES else "",
            edgecolor="white",
        )
    axes.set_xticks(range(len(values)), [ascii_text(_cut(value)) for value in values])
    if sum(map(len, values)) > 2 * _LONGEST_NAME:
        axes.tick_params("x", labelrotation=30)


def _numbers(values: Sequence[str]) -> dict[str, float] | None:
    """Return the values as finite numbers, None if one is no number."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers.values())) else None


def is_logarithmic(numbers: Sequence[float]) -> bool:
    """Return whether the ratios of neighbours are more even than their differences."""
    ascending = sorted(set(numbers))
    if len(ascending) < 2 or ascending[0] <= 0:
        return False
    if len(ascending) == 2:  # any two are even; a third and more apart are orders of magnitude
        return ascending[1] / ascending[0] >= 3
    logarithms = [math.log(number) for number in ascending]
    return _unevenness(logarithms) < _unevenness(ascending)


def _unevenness(ascending: Sequence[float]) -> float:
    """Return the largest distance of neighbours over the smallest one."""
    distances = [after - before for before, after in itertools.pairwise(ascending)]
    return max(distances) / min(distances)


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST_NAME else value[: _LONGEST_NAME - 3] + "..."


def _describe(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Return the text for those who do not see the chart: the best value."""
    found = [(loss, value, name) for name, each in groups.items() for value, loss in each.items()]
    loss, value, name = min(found)
    others = f" with {name}" if name else ""
    return f"{title}: the lowest of {len(found)} is {loss:.4g} at {value}{others}"
