from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data_pipelines.duplicates.tables import (
    find,
    flipped,
    hash_of,
    reasons,
    row,
)

FAR = hash_of(row(9, 9))


def test_of_equal_pictures_the_first_one_is_kept(tmp_path: Path) -> None:
    rows = [
        row(0, 0),
        row(0, 1, pixels_sha256="ab" * 32),
        row(1, 0, pixels_sha256="ab" * 32),
        row(2, 0, pixels_sha256="ab" * 32),
    ]

    found, counts = find(tmp_path, rows, exact_pictures=True)

    assert reasons(found) == {
        (1, 0): ("duplicate_picture", (0, 1)),
        (2, 0): ("duplicate_picture", (0, 1)),
    }
    assert {one["detail"] for one in found.values()} == {"same pixels"}
    assert counts == {"rows": 4, "pictures": 4, "duplicate_picture": 2}


@pytest.mark.parametrize(
    ("keep", "kept", "distances"),
    [("largest", (1, 0), [20, 40]), ("first", (0, 1), [20, 20])],
)
def test_one_of_a_chain_of_near_pictures_is_kept(
    tmp_path: Path, keep: str, kept: tuple[int, int], distances: list[int]
) -> None:
    rows = [
        row(0, 0),
        row(0, 1, pdq=flipped(FAR, range(20))),
        row(0, 2, pdq=FAR),
        row(1, 0, pdq=flipped(FAR, range(40)), width=11),
    ]

    found, counts = find(tmp_path, rows, near_pictures=31, keep=keep)

    members = {(0, 1), (0, 2), (1, 0)}
    assert reasons(found) == dict.fromkeys(members - {kept}, ("near_duplicate_picture", kept))
    assert found[kept]["reason"] is None
    # The cluster has the number of its first row over all parts.
    assert {place: one["cluster"] for place, one in found.items()} == dict.fromkeys(members, 1)
    details = [found[place]["detail"] for place in sorted(members - {kept})]
    assert details == [f"distance {distance}" for distance in distances]
    assert counts["near_picture_clusters"] == 1


def test_number_of_a_cluster_counts_all_rows_before_it(tmp_path: Path) -> None:
    rows = [
        row(0, 0, reason="nsfw"),
        row(0, 1, reason="nsfw"),
        row(2, 0),
        row(2, 1, pdq=FAR),
        row(5, 0, pdq=FAR),
    ]

    found, _ = find(tmp_path, rows, near_pictures=31)

    assert {place: one["cluster"] for place, one in found.items()} == {(2, 1): 3, (5, 0): 3}


def test_distance_of_the_threshold_is_near_and_one_more_is_not(tmp_path: Path) -> None:
    rows = [row(0, 0, pdq=FAR), row(0, 1, pdq=flipped(FAR, range(100, 112)))]

    assert len(reasons(find(tmp_path, rows, near_pictures=12)[0])) == 1
    assert reasons(find(tmp_path, rows, near_pictures=11)[0]) == {}


def test_equal_hashes_are_near_at_every_threshold(tmp_path: Path) -> None:
    rows = [row(0, 0, pdq=FAR), row(0, 1, pdq=FAR)]

    found, _ = find(tmp_path, rows, near_pictures=0)

    assert reasons(found) == {(0, 1): ("near_duplicate_picture", (0, 0))}
    assert found[0, 0]["cluster"] == found[0, 1]["cluster"] == 0


def test_flat_pictures_are_compared_with_equal_ones_only(tmp_path: Path) -> None:
    rows = [
        row(0, 0, pdq=FAR, pdq_quality=49, pixels_sha256="ab" * 32),
        row(0, 1, pdq=FAR, pdq_quality=49),
        row(0, 2, pdq=FAR, pdq_quality=49, pixels_sha256="ab" * 32),
        row(0, 3, pdq=FAR, pdq_quality=50),
    ]

    found, counts = find(tmp_path, rows, exact_pictures=True, near_pictures=31)

    assert reasons(found) == {(0, 2): ("duplicate_picture", (0, 0))}
    assert counts["pictures_too_flat"] == 2


def test_a_copy_gives_way_to_the_picture_that_its_original_gives_way_to(tmp_path: Path) -> None:
    near = flipped(FAR, range(10))
    rows = [
        row(0, 0, pdq=FAR, pixels_sha256="ab" * 32),
        row(0, 1, pdq=FAR, pixels_sha256="ab" * 32),
        row(0, 2, pdq=near, width=99),
    ]

    found, _ = find(tmp_path, rows, exact_pictures=True, near_pictures=31)

    assert reasons(found) == {
        (0, 0): ("near_duplicate_picture", (0, 2)),
        (0, 1): ("duplicate_picture", (0, 2)),
    }
    assert found[0, 1]["detail"] == "same pixels as row 0 of part 0"
    assert {one["cluster"] for one in found.values()} == {0}


def test_rows_of_one_picture_stay_together(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"pixels_sha256": "ab" * 32, "pdq": FAR}
    rows = [
        row(0, 0, picture_id="a", **shared),
        row(0, 1, picture_id="a", **shared),
        row(0, 2, picture_id="b", **shared),
        row(0, 3, picture_id="b", **shared),
        row(1, 0, picture_id="a", **shared, source="other"),
    ]

    found, counts = find(tmp_path, rows, exact_pictures=True, near_pictures=31)

    assert reasons(found) == {
        (0, 2): ("duplicate_picture", (0, 0)),
        (0, 3): ("duplicate_picture", (0, 0)),
        (1, 0): ("duplicate_picture", (0, 0)),
    }
    assert (counts["rows"], counts["pictures"]) == (5, 3)


def test_rejected_rows_take_no_part(tmp_path: Path) -> None:
    rows = [
        row(0, 0, pixels_sha256="ab" * 32, reason="nsfw"),
        row(0, 1, pixels_sha256="ab" * 32),
        {"part": 0, "row": 2, "source": "web", "reason": "not_json"},
    ]

    found, counts = find(tmp_path, rows, exact_pictures=True, near_pictures=31, near_texts=0.5)

    assert found == {}
    assert counts["rows"] == 1


def test_first_pictures_with_a_caption_are_kept(tmp_path: Path) -> None:
    rows = [
        row(0, 0, caption="一只猫"),
        row(0, 1, caption="一只猫。", picture_id="0-0"),
        row(0, 2, caption="一只 猫"),
        row(1, 0, caption="一只猫"),
        row(1, 1, caption="一只狗"),
    ]

    found, _ = find(tmp_path, rows, max_pairs_per_text=2)

    assert reasons(found) == {(1, 0): ("duplicate_text", (0, 0))}
    assert found[1, 0]["detail"] == "number 3 with this caption"


def test_captions_of_rejected_pictures_do_not_count(tmp_path: Path) -> None:
    rows = [
        row(0, 0, pixels_sha256="ab" * 32),
        row(0, 1, pixels_sha256="ab" * 32, caption="一只猫"),
        row(0, 2, caption="一只猫"),
    ]

    found, _ = find(tmp_path, rows, exact_pictures=True, max_pairs_per_text=1, near_texts=0.9)

    assert reasons(found) == {(0, 1): ("duplicate_picture", (0, 0))}


def test_of_near_captions_the_first_one_is_kept(tmp_path: Path) -> None:
    rows = [
        row(0, 0, caption="abcdefgh"),
        row(0, 1, caption="zyxwvuts"),
        row(0, 2, caption="abcdefgi"),  # 5 of 7 shingles shared
        row(0, 3, caption="abcdefgj", picture_id="0-0"),
        row(1, 0, caption="ABCDEFGI!"),
    ]

    found, counts = find(tmp_path, rows, near_texts=0.7)

    assert reasons(found) == {
        (0, 2): ("near_duplicate_text", (0, 0)),
        (1, 0): ("near_duplicate_text", (0, 0)),
    }
    assert found[0, 2]["detail"] == "similarity 0.71"
    assert counts["near_text_clusters"] == 1
    assert reasons(find(tmp_path, rows, near_texts=0.72)[0]) == {}


def test_without_rules_nothing_is_found(tmp_path: Path) -> None:
    rows = [row(0, 0), row(0, 1, pixels_sha256=row(0, 0)["pixels_sha256"], pdq=FAR)]

    assert find(tmp_path, rows)[0] == {}
    assert find(tmp_path / "no rows", [row(0, 0, reason="nsfw")], near_pictures=31)[0] == {}


@given(st.data())
@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_file_order_and_threads_change_no_byte(tmp_path: Path, data: st.DataObject) -> None:
    few = st.integers(0, 3)
    rows = [
        row(
            part,
            number,
            picture_id=f"picture {data.draw(few)}",
            width=10 + data.draw(few),
            pixels_sha256=f"{data.draw(few):064x}",
            pdq=flipped(FAR, range(16 * data.draw(few))),
            caption=f"caption of kind {data.draw(few)}",
        )
        for part in range(3)
        for number in range(4)
    ]
    rules: dict[str, Any] = {
        "exact_pictures": True,
        "near_pictures": 20,
        "max_pairs_per_text": 2,
        "near_texts": 0.9,
    }
    outputs = set()
    for threads, order in ((1, 1), (3, -1)):
        folder = tmp_path / f"{order}"
        found, counts = find(folder, rows[::order], threads=threads, **rules)
        outputs.add((folder / "relations.parquet").read_bytes())

    assert len(outputs) == 1
    assert sum(one["reason"] is not None for one in found.values()) == sum(
        number for name, number in counts.items() if "duplicate" in name
    )
    for one in found.values():  # what is kept instead is kept, and came from somewhere
        if one["of_part"] is not None:
            kept = found.get((one["of_part"], one["of_row"]))
            assert kept is None or kept["reason"] not in (
                "duplicate_picture",
                "near_duplicate_picture",
            )
