"""Sources opened from settings and read in one process."""

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.rejections import Reason, Rejection
from data_pipelines.sources.open import open_sources
from data_pipelines.sources.rows import Part, RawPair, Source
from ernie_vilg.config.shards import BuildShardsConfig

Rows = list[RawPair | Rejection]


def open_source(location: Path | str, work: Path, **settings: Any) -> Source:
    """Open one source."""
    config = BuildShardsConfig(
        source=str(location), output_dir=str(work.parent / "out"), image_size=8, **settings
    )
    (source,) = open_sources(config, work)
    return source


def read(location: Path | str, work: Path, **settings: Any) -> Rows:
    """Return the rows of all parts of a source, whose numbers must be in order."""
    source = open_source(location, work, **settings)
    return [row for part in source.parts() for row in rows_of(source, part)]


def rows_of(source: Source, part: Part) -> Rows:
    """Return the rows of a part, from the source as its task gets it."""
    copy: Source = pickle.loads(pickle.dumps(source.of_part(part)))
    rows = list(copy.rows(part))
    assert [row.row for row in rows] == list(range(len(rows)))
    assert part.rows in (None, len(rows))
    return rows


def pairs_of(rows: Sequence[RawPair | Rejection]) -> list[tuple[bytes, str]]:
    """Return content and caption of every pair."""
    return [(row.picture.read(), row.caption) for row in rows if isinstance(row, RawPair)]


def captions_of(rows: Sequence[RawPair | Rejection]) -> list[str]:
    """Return the caption of every pair."""
    return [row.caption for row in rows if isinstance(row, RawPair)]


def reasons_of(rows: Sequence[RawPair | Rejection]) -> dict[Reason, int]:
    """Return the number of rejections by reason."""
    return dict(Counter(row.reason for row in rows if isinstance(row, Rejection)))
