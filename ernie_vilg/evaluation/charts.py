"""Curves over training steps as SVG, for pages and files.

Chart text is ASCII, because matplotlib's own font has no Chinese.
"""

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ernie_vilg.storage.jsonl import read_lines
from ernie_vilg.tracking.tracker import step_of_entry

COLOURS = ("#1f2937", "#2563eb", "#d97706", "#059669")
_GRID_COLOUR = "#e5e7eb"
_TEXT_COLOUR = "#4b5563"
_INCHES = (5.2, 3.1)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    label: str
    """Name in the legend, ASCII."""
    steps: tuple[float, ...]
    """Steps of the measurements."""
    values: tuple[float, ...]
    """Measured values, one per step."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl, one entry per step in order.

    All lines of a step, such as its losses and its samples, are merged into one entry. A resumed
    run may log some steps twice; the last value of a step counts. A truncated last line, left by a
    killed writer, is skipped.

    Args:
        path: the file; a missing one has no entries.

    Raises:
        InputError: another line is not an object, or its step is not a number.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for line in read_lines(path) if os.path.lexists(path) else ():
        if line.record is None and not line.is_whole:
            continue
        entry = line.require()
        if "step" in entry:
            by_step.setdefault(step_of_entry(entry, line.name), {}).update(entry)
    return [by_step[step] for step in sorted(by_step)]


def curves(entries: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[Curve]:
    """Return a curve for each of some metrics that has a number at some step.

    Args:
        entries: entries of `read_metrics`.
        labels: legend text by metric name.
    """
    found = []
    for name, label in labels.items():
        points = [(entry["step"], entry[name]) for entry in entries if _is_number(entry.get(name))]
        if points:
            steps, values = zip(*points, strict=True)
            found.append(Curve(label=label, steps=steps, values=values))
    return found


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def line_chart(
    lines: Sequence[Curve], *, title: str, y_label: str, logarithmic: bool = False
) -> str:
    """Draw curves over steps.

    Args:
        lines: at most four.
        title: ASCII.
        y_label: ASCII, with the unit.
        logarithmic: whether the vertical axis is logarithmic.

    Returns:
        an SVG document; the same curves give the same text.
    """
    with svg_chart(title, inches=_INCHES) as (axes, content):
        for line, colour in zip(lines, COLOURS, strict=False):
            marker = "o" if len(line.steps) == 1 else ""  # a lone point has no line
            axes.plot(
                line.steps,
                line.values,
                color=colour,
                label=line.label,
                linewidth=1.6,
                marker=marker,
                markersize=4,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        if logarithmic:
            axes.set_yscale("log")
        if len(lines) > 1:
            axes.legend(frameon=False)
    return content.getvalue()


@contextmanager
def svg_chart(title: str, *, inches: tuple[float, float]) -> Iterator[tuple[Axes, io.StringIO]]:
    """Yield the axes of a chart in this project's style, and the text that the SVG is written to.

    Args:
        title: ASCII; it also names the parts of the SVG, so equal charts are equal texts.
        inches: width and height.
    """
    settings = {
        "svg.hashsalt": title,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": _TEXT_COLOUR,
        "axes.labelcolor": _TEXT_COLOUR,
        "xtick.color": _TEXT_COLOUR,
        "ytick.color": _TEXT_COLOUR,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
        axes.grid(color=_GRID_COLOUR, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_GRID_COLOUR)
        content = io.StringIO()
        yield axes, content
        figure.savefig(content, format="svg", metadata={"Date": None})
