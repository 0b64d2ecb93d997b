"""The metadata of raw pairs: one row per picture and caption, in Parquet files.

DuckDB writes and reads them. The same rows give the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS: Mapping[str, str] = {
    # Identity
    "part": "INTEGER",  # number of the task that read the row, over all sources
    "row": "INTEGER",  # position within the part
    "source": "VARCHAR",
    "place": "VARCHAR",
    "picture_id": "VARCHAR",
    "caption": "VARCHAR",  # cleaned and transformed
    "original_caption": "VARCHAR",  # as in the source, where that differs
    "transforms": "VARCHAR",  # names joined by commas
    "record": "VARCHAR",  # JSON object
    # Why it was rejected; null where it was not
    "reason": "VARCHAR",
    "detail": "VARCHAR",
    # Measures of the picture
    "width": "INTEGER",
    "height": "INTEGER",
    "is_animated": "BOOLEAN",
    "contrast": "FLOAT",
    "text_area": "FLOAT",
    "nsfw": "FLOAT",
    "watermark": "FLOAT",
    # Measures of the caption
    "characters": "INTEGER",
    "words": "INTEGER",
    "nouns": "INTEGER",
    "han_share": "FLOAT",
    "language": "VARCHAR",
    "language_score": "FLOAT",
    "similarity": "FLOAT",
    # Hashes
    "pixels_sha256": "VARCHAR",  # hexadecimal; of the upright RGB picture, size included
    "text_sha256": "VARCHAR",  # hexadecimal; of the normalised caption
    "pdq_0": "UBIGINT",  # PDQ hash, 256 bits: the most significant 64
    "pdq_1": "UBIGINT",
    "pdq_2": "UBIGINT",
    "pdq_3": "UBIGINT",
    "pdq_quality": "INTEGER",  # 0 to 100
    # The prepared picture in the work folder
    "picture_offset": "BIGINT",
    "picture_bytes": "INTEGER",
    "picture_crc32": "UINTEGER",
    "is_enlarged": "BOOLEAN",
}
"""Columns of the rows that one task has read, with DuckDB's types. A rejected row has nulls from
where it was rejected on."""

RELATION_COLUMNS: Mapping[str, str] = {
    "part": "INTEGER",
    "row": "INTEGER",
    "reason": "VARCHAR",  # null for the row that is kept of a cluster
    "of_part": "INTEGER",  # the row that is kept instead; null for evaluation sets
    "of_row": "INTEGER",
    "detail": "VARCHAR",  # such as "distance 12", or the evaluation set
    "cluster": "BIGINT",  # number of the cluster of near-duplicate pictures; null outside
}
"""Columns of what deduplication found: one row for every pair that resembles another one."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows as a Parquet file.

    Args:
        path: file to write; its folder exists.
        rows: values by column; a missing one is null.
        columns: all columns with their types, in order.
    """
    raise NotImplementedError
