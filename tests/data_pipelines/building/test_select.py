"""Rows become samples: captions of one picture, repetition, held-out pictures, places in shards."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.building.folders import ROWS_FOLDER
from data_pipelines.building.select import SAMPLES_FILE, VERDICTS_FILE, Selection, select
from data_pipelines.metadata import COLUMNS, RELATION_COLUMNS, database, parquet, write_rows
from ernie_vilg.config.shards import BuildShardsConfig

# Picture and caption of every row of two parts; None was rejected by its inspection.
PARTS: list[list[tuple[str, str] | None]] = [
    [("a", "one"), ("a", "two"), None, ("b", "one")],
    [("c", "one"), ("a", "three"), ("a", "two"), ("d", "four")],
]


def selected(
    folder: Path, *, relations: list[dict[str, Any]] | None = None, **settings: Any
) -> tuple[dict[str, int], list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return the counts, (part, row, reason, of_part, of_row), and (shard, position, part, row)."""
    (folder / ROWS_FOLDER).mkdir()
    for part, entries in enumerate(PARTS):
        rows = [
            {"part": part, "row": row, "source": "web", "reason": "too_small"}
            if entry is None
            else {
                "part": part,
                "row": row,
                "source": "web",
                "picture_id": entry[0],
                "caption": entry[1],
                "pixels_sha256": hashlib.sha256(entry[0].encode()).hexdigest(),
            }
            for row, entry in enumerate(entries)
        ]
        write_rows(folder / ROWS_FOLDER / f"part-{part:05d}.parquet", rows, COLUMNS)
    if relations is not None:
        write_rows(folder / "relations.parquet", relations, RELATION_COLUMNS)
    selection = Selection(
        work_folder=folder,
        relations=None if relations is None else folder / "relations.parquet",
        rows_of_part=[len(entries) for entries in PARTS],
        config=BuildShardsConfig(
            source="unused", output_dir="unused", image_size=4, samples_per_shard=2, **settings
        ),
    )
    with database() as connection:
        counts = select(connection, selection)
        verdicts = connection.execute(
            f"select part, row, reason, of_part, of_row from {parquet(folder / VERDICTS_FILE)}"
        ).fetchall()
        samples = connection.execute(
            f"select shard, number, part, row from {parquet(folder / SAMPLES_FILE)}"
        ).fetchall()
    return counts, verdicts, samples


REPEATED = (1, 2, "duplicate_key", 0, 1)  # picture a with "two" again


def test_all_captions_stay_with_their_picture_wherever_they_stand(tmp_path: Path) -> None:
    counts, verdicts, samples = selected(tmp_path, captions="all")

    assert counts == {"train": 4}
    assert [verdict for verdict in verdicts if verdict[2]] == [REPEATED]
    # Shard, number of the sample's first row, part and row; a has three captions.
    assert samples == [
        (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 3, 0, 3), (1, 4, 1, 0), (1, 7, 1, 3)
    ]  # fmt: skip


def test_the_first_caption_stays_and_the_others_are_counted(tmp_path: Path) -> None:
    counts, verdicts, samples = selected(tmp_path, captions="first")

    assert counts == {"train": 4}
    assert [verdict for verdict in verdicts if verdict[2]] == [
        (0, 1, "further_caption", 0, 0),
        (1, 1, "further_caption", 0, 0),
        (1, 2, "duplicate_key", 0, 1),
    ]
    assert [(part, row) for _, _, part, row in samples] == [(0, 0), (0, 3), (1, 0), (1, 3)]


def test_each_caption_becomes_a_sample(tmp_path: Path) -> None:
    counts, _, samples = selected(tmp_path, captions="separate")

    assert counts == {"train": 6}
    assert samples == [
        (0, 0, 0, 0), (0, 1, 0, 1), (1, 3, 0, 3), (1, 4, 1, 0), (2, 5, 1, 1), (2, 7, 1, 3)
    ]  # fmt: skip


def test_what_deduplication_rejects_is_in_no_sample(tmp_path: Path) -> None:
    relations: list[dict[str, Any]] = [
        {"part": 0, "row": 0, "reason": "near_duplicate_text", "of_part": 0, "of_row": 3,
         "detail": "0.9"},
        {"part": 0, "row": 3, "reason": None, "cluster": 3},
        {"part": 1, "row": 0, "reason": "near_duplicate_picture", "of_part": 0, "of_row": 3,
         "detail": "distance 12", "cluster": 3},
    ]  # fmt: skip

    counts, verdicts, samples = selected(tmp_path, relations=relations, captions="all")

    assert counts == {"train": 3}
    assert [verdict for verdict in verdicts if verdict[2]] == [
        (0, 0, "near_duplicate_text", 0, 3),
        (1, 0, "near_duplicate_picture", 0, 3),
        (1, 2, "duplicate_key", 0, 1),
    ]
    # Picture a is now named by its second row.
    assert samples == [(0, 1, 0, 1), (0, 1, 1, 1), (0, 3, 0, 3), (1, 7, 1, 3)]


def is_held_out(name: str, seed: int, fraction: float) -> bool:
    """Decide as documented: the hash as a fraction of its range lies below the fraction."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).hexdigest()
    return int(digest, 16) / 2**256 < fraction


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_a_picture_are_held_out_together(tmp_path: Path, seed: int) -> None:
    pixels = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abcd"}
    cluster = min(pixels["b"], pixels["d"])  # b and d are near-duplicates, and both kept
    expected = {
        name: is_held_out(cluster if name in "bd" else pixels[name], seed, 0.5) for name in "abcd"
    }
    relations = [
        {"part": 0, "row": 3, "cluster": 9},
        {"part": 1, "row": 3, "cluster": 9},
    ]

    counts, _, _ = selected(
        tmp_path, relations=relations, captions="all", hold_out_fraction=0.5, seed=seed
    )

    with database() as connection:
        splits = connection.execute(
            f"select part, row, split from {parquet(tmp_path / VERDICTS_FILE)}"
        ).fetchall()
    found = {PARTS[part][row][0]: split for part, row, split in splits if split}
    assert {name: split == "held_out" for name, split in found.items()} == expected
    assert sum(counts.values()) == 4
    assert json.dumps(counts)  # plain numbers, for the record
