"""The chart of docs/loader.md: throughput beside webdataset's, and memory over samples."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.support.charts import BASELINE, INK, LIMIT, OURS, PALE, panels
from benchmarks.support.measurer import Result

Bars = tuple[str, Sequence[float], Sequence[float], float]
"""Kind of sample; samples per second of our repeats, and of webdataset's; the ratio."""


def draw(path: Path, bars: Sequence[Bars], memory: Result, *, limit_mb: float) -> None:
    """Draw one panel per kind of sample, because rates differ in scale, and one of memory.

    Args:
        path: PNG file to write.
        bars: at least one.
        memory: `samples` read and `mb` at each look, and `imported`, the MB before reading.
        limit_mb: upper limit of the memory.
    """
    widths = [1.0] * len(bars) + [2.6]
    with panels(path, 3.8, widths) as axes:
        for panel, (name, ours, baseline, ratio) in zip(axes, bars, strict=False):
            _draw_bars(panel, ours, baseline)
            panel.set_title(f"{name}: {_shown(ratio)} x", fontweight="bold", fontsize=11)
        axes[0].set_ylabel("samples per second and core")
        _draw_memory(axes[-1], memory, limit_mb)


def _draw_bars(axes: Axes, ours: Sequence[float], baseline: Sequence[float]) -> None:
    """Draw medians as bars, and lines from the slowest repeat to the fastest."""
    for place, (rates, colour) in enumerate(((ours, OURS), (baseline, BASELINE))):
        middle = statistics.median(rates)
        axes.bar(place, middle, width=0.75, color=colour)
        axes.vlines(place, min(rates), max(rates), color=INK, linewidth=1.5)
        axes.text(place, max(rates) * 1.02, f"{middle:,.0f}", ha="center", va="bottom")
    axes.set_xticks([0, 1], ["ours", "webdataset"])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(0, 1.22 * max(*ours, *baseline))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_memory(axes: Axes, memory: Result, limit_mb: float) -> None:
    thousands = [samples / 1000 for samples in memory["samples"]]
    axes.plot(thousands, memory["mb"], color=OURS, linewidth=2, label="one rank that reads")
    axes.axhline(
        memory["imported"], color=INK, linewidth=1.2, linestyle=":", label="its imports alone"
    )
    axes.axhline(limit_mb, color=LIMIT, linewidth=1.2, linestyle="--", label="limit")
    axes.set_ylim(0, 1.15 * max(limit_mb, *memory["mb"]))
    axes.set_xlim(0, thousands[-1])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("thousand samples read")
    axes.set_title("resident memory, MB", fontweight="bold", fontsize=11)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")


def _shown(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}"
