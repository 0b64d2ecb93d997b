"""Charts of an audit: lengths of captions, measures with their limits, use of the codebook."""

import math
from collections.abc import Sequence

from data_pipelines.audit.codes import CodeStatistics
from data_pipelines.audit.statistics import CaptionStatistics, Histogram, RowStatistics
from data_pipelines.audit.tokens import TokenFindings
from ernie_vilg.evaluation.count_charts import histogram_chart, rank_chart

MOST_BARS = 60
MOST_LIMITS = 4
"""Limits drawn in one chart; several sources may have different ones."""

Chart = tuple[bytes, str]
"""SVG file and its description."""


def caption_charts(
    captions: CaptionStatistics | None, tokens: TokenFindings | None, text_length: int | None
) -> list[Chart]:
    """Draw the lengths of captions, in characters and in ids."""
    charts = []
    if captions is not None:
        charts.append(_chart(captions.characters, "Captions by characters", unit="captions"))
    if tokens is not None and tokens.counts.caption_lengths:
        lengths = tokens.counts.caption_lengths
        low, high = min(lengths), max(lengths) + 1
        width = math.ceil((high - low) / MOST_BARS)
        counts = [0] * math.ceil((high - low) / width)
        for length, count in lengths.items():
            counts[(length - low) // width] += count
        limits = []
        if text_length is not None:  # between the longest that fits and the next
            limits = [(f"text_length = {text_length}", text_length + 0.5)]
        title = "Captions by text ids, end of text included"
        high = low + width * len(counts)
        svg = histogram_chart(
            counts, low=low, high=high, title=title, limits=limits, unit="captions"
        )
        charts.append((svg.encode(), title))
    return charts


def measure_charts(rows: RowStatistics | None) -> list[Chart]:
    """Draw every measure of the rules, with their limits."""
    if rows is None:
        return []
    return [
        _chart(each, f"{each.name[0].upper()}{each.name[1:]}", unit="rows")
        for each in rows.histograms
        if not is_constant(each)
    ]


def is_constant(histogram: Histogram) -> bool:
    """Return whether all rows have the same value, which needs no chart."""
    return sum(map(bool, histogram.kept)) <= 1 and not any(histogram.rejected[1:])


def code_charts(codes: CodeStatistics | None) -> list[Chart]:
    """Draw the use of the codebook, and the shards' divergence from all of them."""
    if codes is None or not codes.num_codes:
        return []
    title = "Codes by frequency"
    charts = [(rank_chart(codes.shares, total=codes.codebook_size, title=title).encode(), title)]
    if len(codes.divergences) > 1:
        counts, high = _binned(codes.divergences)
        title = "Shards by divergence from all shards, bits of 1"
        svg = histogram_chart(counts, low=0, high=high, title=title, unit="shards")
        charts.append((svg.encode(), title))
    return charts


def _chart(histogram: Histogram, title: str, *, unit: str) -> Chart:
    limits = [
        (f"{each.label} = {each.value:g}".encode("ascii", "replace").decode(), each.value)
        for each in histogram.thresholds[:MOST_LIMITS]
    ]
    svg = histogram_chart(
        histogram.kept,
        histogram.rejected,
        low=histogram.low,
        high=histogram.high,
        title=title,
        limits=limits,
        unit=unit,
    )
    return svg.encode(), title


def _binned(values: Sequence[float]) -> tuple[list[int], float]:
    """Return the counts of values from 0 in bins of equal width, and the right edge of the last."""
    high = max(*values, 1e-6) * 1.0001
    counts = [0] * min(MOST_BARS, max(10, len(values)))
    for value in values:
        counts[int(value / high * len(counts))] += 1
    return counts, high
