"""Every row that gives way to another one leads to a row that is kept."""

from pathlib import Path
from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.building.folders import ROWS_FOLDER
from data_pipelines.building.select import VERDICTS_FILE, Selection, select
from data_pipelines.duplicates.find import find_duplicates
from data_pipelines.metadata import database, parquet
from ernie_vilg.config.curation import DeduplicationConfig
from ernie_vilg.config.shards import BuildShardsConfig
from tests.data_pipelines.duplicates.tables import flipped, hash_of, row, write_parts

PARTS, ROWS = 3, 4
SOURCE = hash_of(row(9, 9))
RULES = DeduplicationConfig(
    exact_pictures=True, near_pictures=20, max_pairs_per_text=2, near_texts=0.9
)

Place = tuple[int, int]
Verdicts = dict[Place, tuple[str | None, Place]]


def compare_random_rows(folder: Path, data: st.DataObject) -> None:
    """Write 12 rows of few pictures and captions, and what resembles what."""
    few = st.integers(0, 3)
    rows = []
    for part in range(PARTS):
        for number in range(ROWS):
            picture, caption = data.draw(few), data.draw(few)
            rows.append(
                row(
                    part,
                    number,
                    picture_id=f"picture {picture}",
                    width=10 + picture,
                    pixels_sha256=f"{picture // 2:064x}",
                    pdq=flipped(SOURCE, range(16 * (picture // 2))),
                    caption=f"a caption of the same words as all the others, of kind {caption}",
                )
            )
    (folder / "scratch").mkdir(exist_ok=True)
    pattern = write_parts(folder / ROWS_FOLDER, rows)
    find_duplicates(
        pattern, RULES, output=folder / "relations.parquet", folder=folder / "scratch", threads=1
    )


def verdicts_of(folder: Path, captions: Literal["all", "first", "separate"]) -> Verdicts:
    """Return reason and row kept instead by (part, row)."""
    selection = Selection(
        work_folder=folder,
        relations=folder / "relations.parquet",
        rows_of_part=[ROWS] * PARTS,
        config=BuildShardsConfig(
            source="unused", output_dir="unused", image_size=4, captions=captions
        ),
    )
    with database() as connection:
        select(connection, selection)
        found = connection.execute(
            f"select part, row, reason, of_part, of_row from {parquet(folder / VERDICTS_FILE)}"
        ).fetchall()
    return {(part, number): (reason, (of, of_row)) for part, number, reason, of, of_row in found}


@given(st.data())
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_row_that_gives_way_leads_to_a_kept_row(tmp_path: Path, data: st.DataObject) -> None:
    compare_random_rows(tmp_path, data)

    for captions in ("all", "first", "separate"):
        verdicts = verdicts_of(tmp_path, captions)
        assert len(verdicts) == PARTS * ROWS
        for place in verdicts:
            passed = [place]
            while verdicts[passed[-1]][0] is not None:  # over rows that give way themselves
                passed.append(verdicts[passed[-1]][1])
                assert passed[-1] not in passed[:-1], passed
