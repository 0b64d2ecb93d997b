"""The chart of docs/checkpoints.md: cost of a save to training, and cost of a killed rank."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.support.charts import BASELINE, INK, LIMIT, OURS, SECOND, panels

_PART_COLOURS = ("#999999", BASELINE, SECOND, OURS, "#009e73")


def draw(
    path: Path, stalls: Mapping[str, Sequence[float]], restart: Mapping[str, float], *, limit: float
) -> None:
    """Draw the stall of training for each save, and the parts of a restart.

    Args:
        path: PNG file to write.
        stalls: seconds of all saves by their kind; the first is ours.
        restart: seconds by part, in order.
        limit: upper limit of the first, in seconds.
    """
    with panels(path, 3.6, (1.2, 1.0)) as (left, right):
        _draw_stalls(left, stalls, limit)
        _draw_restart(right, restart)


def _draw_stalls(axes: Axes, stalls: Mapping[str, Sequence[float]], limit: float) -> None:
    """Draw every save as a dot, and the median as a line."""
    for place, (name, seconds) in enumerate(stalls.items()):
        colour = OURS if place == 0 else BASELINE
        ordered = sorted(seconds)
        last = max(1, len(ordered) - 1)
        spread = [place + 0.5 * (index / last - 0.5) for index in range(len(ordered))]
        axes.scatter(spread, ordered, s=14, color=colour, label=name)
        middle = statistics.median(ordered)
        axes.hlines(middle, place - 0.32, place + 0.32, color=INK, linewidth=1.5)
        axes.text(place + 0.35, middle, f"{middle:.2f} s", va="center")
    axes.axhline(limit, color=LIMIT, linewidth=1.2, linestyle="--")
    axes.text(1, limit, "20 % of blocking", color=LIMIT, va="bottom", ha="center")
    axes.set_xticks(range(len(stalls)), list(stalls))
    axes.set_xlim(-0.5, len(stalls) - 0.2)
    axes.set_ylim(bottom=0)
    axes.set_title("seconds that a save blocks training", fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_restart(axes: Axes, restart: Mapping[str, float]) -> None:
    start = 0.0
    for place, (name, seconds) in enumerate(restart.items()):
        axes.barh(-place, seconds, left=start, color=_PART_COLOURS[place % 5], height=0.6)
        axes.text(start + seconds, -place, f" {name}: {seconds:.1f} s", va="center")
        start += seconds
    axes.set_yticks([])
    axes.set_xlim(0, 1.6 * start)
    axes.set_xlabel("seconds after a rank was killed")
    axes.set_title(f"the next step comes after {start:.1f} s", fontweight="bold", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
