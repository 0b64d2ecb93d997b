"""Charts of counts as SVG: histograms with thresholds, and shares by rank.

Chart text is ASCII, because matplotlib's own font has no Chinese.
"""

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from ernie_vilg.evaluation.charts import COLOURS, svg_chart

_INCHES = (5.2, 2.6)
_REJECTED_COLOUR = "#d1d5db"
_LIMIT_COLOUR = "#b91c1c"


def histogram_chart(
    kept: Sequence[int],
    rejected: Sequence[int] = (),
    *,
    low: float,
    high: float,
    title: str,
    limits: Sequence[tuple[str, float]] = (),
    unit: str = "rows",
) -> str:
    """Draw counts in bins of equal width, rejected ones above kept ones.

    Args:
        kept: counts of every bin.
        rejected: the same for rejected rows; empty draws none.
        low: left edge of the first bin.
        high: right edge of the last bin.
        title: ASCII.
        limits: legend, ASCII, and place of vertical lines.
        unit: plural name of what is counted, ASCII.

    Returns:
        an SVG document.
    """
    width = (high - low) / len(kept)
    shift = 0.5 if width == 1 else 0.0  # a bar of one whole number stands above it
    edges = [low + width * number - shift for number in range(len(kept))]
    with svg_chart(title, inches=_INCHES) as (axes, content):
        blue, grey = COLOURS[1], _REJECTED_COLOUR
        layers: list[tuple[Sequence[int], Sequence[int], str, str]] = [
            (kept, [0] * len(kept), blue, "kept" if rejected else ""),
            *([(rejected, kept, grey, "rejected")] if rejected else []),
        ]
        for counts, below, colour, label in layers:
            axes.bar(edges, counts, 0.9 * width, below, align="edge", color=colour, label=label)
        for label, value in limits:
            axes.axvline(value, color=_LIMIT_COLOUR, linewidth=1.4, label=label)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        if width >= 1:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if rejected or limits:
            axes.legend(frameon=False, fontsize=8)
    return content.getvalue()


def rank_chart(shares: Sequence[float], *, total: int, title: str) -> str:
    """Draw shares by rank, both axes logarithmic.

    Args:
        shares: shares of the most frequent to the least frequent, thinned evenly; zeros are not
            drawn.
        total: number of ranks.
        title: ASCII.

    Returns:
        an SVG document.
    """
    step = (total - 1) / max(1, len(shares) - 1)
    points = [(1 + step * at, share) for at, share in enumerate(shares) if share > 0]
    with svg_chart(title, inches=_INCHES) as (axes, content):
        axes.plot(
            [rank for rank, _ in points],
            [share for _, share in points],
            color=COLOURS[1],
            marker="." if len(points) < 50 else "",
        )
        axes.axhline(1 / total, color=COLOURS[2], linewidth=1.2, label="all codes alike")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1, total)
        axes.set_xlabel("code, the most frequent first")
        axes.set_ylabel("share of codes")
        axes.legend(frameon=False, fontsize=8)
    return content.getvalue()
