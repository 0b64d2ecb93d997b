"""Curves over training steps as SVG, for pages and files.

Chart text is ASCII, because matplotlib's own font has no Chinese.
"""

import io
import itertools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ernie_vilg.storage.jsonl import read_lines
from ernie_vilg.tracking.tracker import step_of_entry

COLOURS = ("#1f2937", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Colours that stay apart for readers who see red and green alike.

Source: Okabe and Ito, Color Universal Design (2008), without its two palest colours."""
DASHES = ("solid", "dashed")
MOST_LINES = len(COLOURS) * len(DASHES)
"""Lines that a chart tells apart."""

_GRID_COLOUR = "#e5e7eb"
_TEXT_COLOUR = "#4b5563"
_INCHES = (5.2, 3.1)
_FEWEST_SMOOTHED = 20
_LEGEND_COLUMNS = 4
_DECADES_WITHOUT_MINOR_NAMES = 2


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    label: str
    """Name in the legend, ASCII."""
    steps: tuple[float, ...]
    """Steps of the measurements."""
    values: tuple[float, ...]
    """Measured values, one per step."""
    index: int | None = None
    """Index of its colour and dashes below `MOST_LINES`; None: its place among the lines."""
    is_faint: bool = False
    """Whether it stands behind the others, pale and without a name: the raw values of a smoothed
    curve."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Events at some steps, at the lower edge of a chart."""

    label: str
    """Name in the legend, ASCII."""
    steps: tuple[int, ...]
    """Steps of the events."""
    marker: str
    """Matplotlib's sign, such as "x"."""
    index: int
    """Index of the colour, as in `Curve`."""


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
        points = [(entry["step"], entry[name]) for entry in entries if is_number(entry.get(name))]
        if points:
            steps, values = zip(*points, strict=True)
            found.append(Curve(label=label, steps=steps, values=values))
    return found


def ascii_text(text: str) -> str:
    """Return a text for a chart, whose font has no Chinese."""
    return text.encode("ascii", "replace").decode()


def ascii_label(line: Curve) -> Curve:
    """Return a curve with a name that a chart can show."""
    return replace(line, label=ascii_text(line.label))


def is_number(value: Any) -> bool:
    """Return whether a value of a log line is a finite number."""
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and abs(value) <= sys.float_info.max


def smoothed(curve: Curve, *, is_logarithmic: bool) -> Curve | None:
    """Return the moving mean of a curve; None for one of fewer than 20 points.

    The window has 5 points, or 2 % of all, and is centred: it shrinks towards both ends, so that
    the first and the last value stay.

    Args:
        curve: the curve.
        is_logarithmic: whether its axis is: then the mean is the geometric one, if all values are
            above 0.
    """
    count = len(curve.values)
    if count < _FEWEST_SMOOTHED:
        return None
    values = curve.values
    if is_geometric := is_logarithmic and min(values) > 0:
        values = tuple(map(math.log, values))
    sums = [0.0, *itertools.accumulate(values)]
    half, means = max(2, count // 100), []
    for index in range(count):
        reach = min(half, index, count - 1 - index)
        first, end = index - reach, index + reach + 1
        means.append((sums[end] - sums[first]) / (end - first))
    return replace(curve, values=tuple(map(math.exp, means) if is_geometric else means))


def line_chart(
    lines: Sequence[Curve],
    *,
    title: str,
    y_label: str,
    x_label: str = "step",
    logarithmic: bool = False,
    marks: Sequence[Marks] = (),
    names_lines: bool = True,
) -> str:
    """Draw curves, over steps unless `x_label` says otherwise.

    Args:
        lines: at most `MOST_LINES`, the faint ones not counted.
        title: ASCII.
        y_label: ASCII, with the unit.
        x_label: ASCII, with the unit.
        logarithmic: whether the vertical axis is logarithmic; without a value above 0 it is not.
        marks: events.
        names_lines: whether a legend names several lines; marks are always named.

    Returns:
        an SVG document; the same curves give the same text.
    """
    with svg_chart(title, inches=_INCHES) as (axes, content):
        is_named = names_lines and sum(not line.is_faint for line in lines) > 1
        for index, line in enumerate(lines):
            _draw_line(axes, line, index if line.index is None else line.index, is_named=is_named)
        for mark in marks:
            axes.plot(
                mark.steps,
                [0.03] * len(mark.steps),
                transform=axes.get_xaxis_transform(),
                linestyle="",
                marker=mark.marker,
                markersize=6,
                color=COLOURS[mark.index % len(COLOURS)],
                label=mark.label,
                clip_on=False,
            )
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if logarithmic and any(value > 0 for line in lines for value in line.values):
            make_logarithmic(axes, "y")
        if marks or is_named:
            add_legend(axes, columns=_LEGEND_COLUMNS)
    return content.getvalue()


def _draw_line(axes: Axes, line: Curve, index: int, *, is_named: bool) -> None:
    axes.plot(
        line.steps,
        line.values,
        color=COLOURS[index % len(COLOURS)],
        linestyle=DASHES[index // len(COLOURS)],
        label=line.label if is_named and not line.is_faint else "_",  # "_": not in the legend
        linewidth=0.8 if line.is_faint else 1.6,
        alpha=0.35 if line.is_faint else 1,
        marker="o" if len(line.steps) == 1 else "",  # a lone point has no line
        markersize=4,
    )


def add_legend(axes: Axes, *, columns: int) -> None:
    """Name the lines of a chart below it, where no line is hidden."""
    figure = axes.figure
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def make_logarithmic(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, with plain numbers: 0.5 rather than a power of ten.

    Args:
        axes: axes with their curves, of which some value on the axis is above 0.
        which: "x" or "y".
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    set_scale("log", nonpositive="mask")  # 0 is no point, rather than a line to the lower edge
    low, high = axis.get_view_interval()
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    decades = math.log10(high / low) if low > 0 else math.inf
    if decades > _DECADES_WITHOUT_MINOR_NAMES:
        axis.set_minor_formatter(NullFormatter())
        return
    digits = "1235" if decades > 1 else "123456789"
    axis.set_minor_formatter(FuncFormatter(lambda value, _: _named_minor(value, digits)))


def _named_minor(value: float, digits: str) -> str:
    text = f"{value:.3g}"
    return text if text.lstrip("0.")[:1] in digits and value else ""


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
