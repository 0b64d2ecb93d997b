"""Rows that resemble another row or an evaluation set."""

from collections.abc import Mapping
from pathlib import Path

from ernie_vilg.config.curation import DeduplicationConfig


def find_duplicates(
    rows: str, config: DeduplicationConfig, *, output: Path, folder: Path
) -> Mapping[str, int]:
    """Write which rows resemble another row or an evaluation set.

    Args:
        rows: pattern of the Parquet files of inspected rows, with `metadata.COLUMNS`.
        config: what counts as a duplicate.
        output: Parquet file to write, with `metadata.RELATION_COLUMNS`, in order of (part, row).
        folder: scratch folder for what does not fit into memory; it exists.

    Returns:
        counts for the manifest by name.

    Raises:
        InputError: an evaluation set cannot be read, or a package is missing.
    """
    raise NotImplementedError
