"""Counts of rows and captions, and histograms of what the rules measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from duckdb import DuckDBPyConnection

from data_pipelines.audit.database import one_row

NUM_BINS = 40
MOST_FREQUENT = 12
MOST_LANGUAGES = 12


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """Rows of one source: read, kept, and rejected by reason."""

    source: str
    read: int
    kept: int
    """Kept rows, the held-out ones included."""
    held_out: int
    enlarged: int
    """Samples whose picture was smaller than image_size."""
    rejected: Mapping[str, int]
    """Rejected rows by reason."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A limit of a rule."""

    label: str
    """Rules and setting, such as "web.min_similarity"."""
    value: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of a measured value in bins of equal width."""

    name: str
    """Measure in words."""
    low: float
    """Left edge of the first bin."""
    high: float
    """Right edge of the last bin."""
    kept: tuple[int, ...]
    """Kept rows of every bin."""
    rejected: tuple[int, ...] = ()
    """Rejected rows of every bin; empty where only kept ones are counted."""
    thresholds: tuple[Threshold, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaptionStatistics:
    """Captions of all samples in the shards."""

    num_captions: int
    num_distinct: int
    most_frequent: tuple[tuple[str, int], ...]
    """Captions that occur more than once, with their counts."""
    characters: Histogram
    mean_characters: float
    max_characters: int


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Rows of the metadata."""

    sources: tuple[SourceCounts, ...]
    languages: tuple[tuple[str, int], ...]
    """Kept rows by language; empty where no rule measured it."""
    histograms: tuple[Histogram, ...]


MEASURES: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("similarity of picture and caption", "similarity", ("min_similarity",)),
    ("NSFW probability", "nsfw", ("max_nsfw",)),
    ("watermark probability", "watermark", ("max_watermark",)),
    ("share of the picture covered by text", "text_area", ("max_text_area",)),
    ("contrast, grey values", "contrast", ("min_contrast",)),
    ("shorter side, pixels", "least(width, height)", ("min_side",)),
    (
        "aspect ratio, longer side to shorter",
        "greatest(width, height) / nullif(least(width, height), 0)",
        ("max_aspect_ratio",),
    ),
    ("characters", "characters", ("min_characters", "max_characters")),
    ("share of Chinese characters", "han_share", ("min_han_share",)),
    ("confidence in the language", "language_score", ("min_language_score",)),
    ("words", "words", ("max_words",)),
    ("nouns", "nouns", ("min_nouns",)),
)
"""Measure in words, expression over the metadata, and the rules that limit it."""


def caption_statistics(connection: DuckDBPyConnection) -> CaptionStatistics | None:
    """Return the statistics of the samples' captions; None if there is none."""
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW captions AS SELECT unnest(string_split(captions, chr(10))) AS "
        "caption, 'kept' AS verdict FROM samples WHERE captions IS NOT NULL"
    )
    count, distinct, mean, longest = one_row(
        connection,
        "SELECT count(*), count(DISTINCT md5(caption)), avg(length(caption)), max(length(caption)) "
        "FROM captions",
    )
    if not count:
        return None
    (span,) = _ranges(connection, "captions", ["length(caption)"])
    assert span is not None
    characters = _histogram(connection, "captions", "characters", "length(caption)", span, ())
    frequent = connection.execute(
        "SELECT caption, count(*) AS times FROM captions GROUP BY caption HAVING times > 1 "
        f"ORDER BY times DESC, caption LIMIT {MOST_FREQUENT}"
    ).fetchall()
    return CaptionStatistics(
        num_captions=count,
        num_distinct=distinct,
        most_frequent=tuple(frequent),
        characters=characters,
        mean_characters=mean,
        max_characters=longest,
    )


def row_statistics(
    connection: DuckDBPyConnection, rules: Mapping[str, Mapping[str, Any]]
) -> RowStatistics:
    """Return the statistics of the metadata.

    Args:
        connection: with the view `rows`.
        rules: limits by the name of the rules and of the limit, for the histograms.
    """
    languages = connection.execute(
        "SELECT language, count(*) AS times FROM rows WHERE verdict = 'kept' AND language IS NOT "
        f"NULL GROUP BY language ORDER BY times DESC, language LIMIT {MOST_LANGUAGES}"
    ).fetchall()
    spans = _ranges(connection, "rows", [expression for _, expression, _ in MEASURES])
    histograms = [
        _histogram(connection, "rows", name, expression, span, _thresholds(rules, limits))
        for (name, expression, limits), span in zip(MEASURES, list(spans), strict=True)
        if span is not None
    ]
    return RowStatistics(
        sources=source_counts(connection),
        languages=tuple(languages),
        histograms=tuple(histograms),
    )


def source_counts(connection: DuckDBPyConnection) -> tuple[SourceCounts, ...]:
    """Return the counts of every source, in the order of the alphabet."""
    counts = connection.execute(
        "SELECT coalesce(source, ''), count(*), count(*) FILTER (verdict = 'kept'), "
        "count(*) FILTER (verdict = 'kept' AND split = 'held_out'), "
        "count(DISTINCT (split, key)) FILTER (verdict = 'kept' AND is_enlarged) FROM rows "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()
    rejected: dict[str, dict[str, int]] = {}
    for source, reason, count in connection.execute(
        "SELECT coalesce(source, ''), coalesce(reason, 'null'), count(*) FROM rows "
        "WHERE verdict = 'rejected' GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall():
        rejected.setdefault(source, {})[reason] = count
    return tuple(
        SourceCounts(
            source=source,
            read=read,
            kept=kept,
            held_out=held_out,
            enlarged=enlarged,
            rejected=rejected.get(source, {}),
        )
        for source, read, kept, held_out, enlarged in counts
    )


def _thresholds(
    rules: Mapping[str, Mapping[str, Any]], limits: Sequence[str]
) -> tuple[Threshold, ...]:
    return tuple(
        Threshold(label=f"{name}.{limit}", value=float(rules[name][limit]))
        for name in sorted(rules)
        for limit in limits
        if _is_limit(limit, rules[name].get(limit))
    )


def _is_limit(limit: str, value: Any) -> bool:
    """Return whether a rule is on; 0 is a limit of the similarity alone."""
    return value is not None and (value != 0 or limit == "min_similarity")


@dataclass(frozen=True, kw_only=True)
class _Range:
    """Smallest and largest value of an expression, and whether all are whole numbers."""

    low: float
    high: float
    is_whole: bool

    def bins(self) -> tuple[int, float]:
        """Return the number of bins, and the right edge of the last."""
        if not self.is_whole:
            return NUM_BINS, self.high if self.high > self.low else self.low + 1
        # Each bin has as many whole numbers.
        width = ceil((self.high - self.low + 1) / NUM_BINS)
        num_bins = int(self.high - self.low) // width + 1
        return num_bins, self.low + width * num_bins


def _ranges(
    connection: DuckDBPyConnection, table: str, expressions: Sequence[str]
) -> Iterator[_Range | None]:
    """Yield the range of every expression; None for one that is null everywhere."""
    columns = [
        column
        for value in expressions
        for column in (f"min({value})", f"max({value})", f"bool_and({value} = round({value}))")
    ]
    found = one_row(connection, f"SELECT {', '.join(columns)} FROM {table}")
    for at in range(0, len(found), 3):
        low, high, is_whole = found[at : at + 3]
        yield None if low is None else _Range(low=float(low), high=float(high), is_whole=is_whole)


def _histogram(
    connection: DuckDBPyConnection,
    table: str,
    name: str,
    expression: str,
    span: _Range,
    thresholds: tuple[Threshold, ...],
) -> Histogram:
    num_bins, high = span.bins()
    kept, rejected = [0] * num_bins, [0] * num_bins
    for at, count_kept, count_rejected in connection.execute(
        f"SELECT least(floor(({expression} - {span.low!r}) / {high - span.low!r} * {num_bins}), "
        f"{num_bins - 1})::INTEGER AS bin, count(*) FILTER (verdict = 'kept'), "
        f"count(*) FILTER (verdict = 'rejected') FROM {table} WHERE ({expression}) IS NOT NULL "
        "GROUP BY bin"
    ).fetchall():
        kept[at], rejected[at] = count_kept, count_rejected
    return Histogram(
        name=name,
        low=span.low,
        high=high,
        kept=tuple(kept),
        rejected=tuple(rejected) if any(rejected) else (),
        thresholds=thresholds,
    )
