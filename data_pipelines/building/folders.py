"""Names of files and folders within the work folder."""

from pathlib import Path

from data_pipelines.metadata import HELD_OUT_FOLDER, METADATA_FOLDER

ROWS_FOLDER = "rows"
"""Metadata of every part, without the verdicts that need all parts."""
PICTURES_FOLDER = "pictures"
"""Prepared pictures of every part, one after another in a file."""
THUMBNAILS_FOLDER = "thumbnails"
"""Thumbnails of rejected pictures of every part."""
SHARDS_FOLDER = "shards"
"""Folder that becomes the output folder."""
PARTS = "part-*.parquet"
"""Pattern of the files of all parts."""

TRAIN, HELD_OUT = "train", "held_out"
"""Splits: the shards of the output folder, and those of the folder `held_out` in it."""


def part_name(number: int) -> str:
    """Return the name of a part's files and record."""
    return f"part-{number:05d}"


def split_folder(work_folder: Path, split: str) -> Path:
    """Return the folder of the shards of a split."""
    folder = work_folder / SHARDS_FOLDER
    return folder / HELD_OUT_FOLDER if split == HELD_OUT else folder


def metadata_folder(work_folder: Path) -> Path:
    """Return the folder of the final metadata within the work folder."""
    return work_folder / SHARDS_FOLDER / METADATA_FOLDER
