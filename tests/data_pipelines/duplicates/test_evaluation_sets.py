from pathlib import Path
from typing import Any

import pytest

from data_pipelines.duplicates.content_hashes import sha256_of_text
from data_pipelines.metadata import FINAL_COLUMNS, write_rows
from ernie_vilg.errors import InputError
from tests.data_pipelines.duplicates.tables import find, flipped, hash_of, reasons, row


def digits_of(words: list[int]) -> str:
    return "".join(f"{word:016x}" for word in words)


def test_listed_pictures_and_captions_are_rejected(tmp_path: Path) -> None:
    rows = [row(0, number) for number in range(7)]
    rows[5] = row(0, 5, picture_id="0-4")
    rows[6] = row(0, 6, pdq=flipped(hash_of(rows[1]), range(32)))
    listed = tmp_path / "set.txt"
    listed.write_text(
        "# pictures\n\n"
        f"pdq:{digits_of(flipped(hash_of(rows[1]), range(31)))}\n"
        f"sha256:{rows[2]['pixels_sha256'].upper()}\n"
        f"text:{sha256_of_text(rows[3]['caption'])}\n"
        "id: 0-4\n"
        f"pdq:{digits_of(flipped(hash_of(rows[2]), range(2)))}\n"
    )

    found, counts = find(tmp_path, rows, against=(str(listed),))

    assert {place: one["detail"] for place, one in found.items()} == {
        (0, 1): f"distance 31, {listed}",
        (0, 2): f"pixels, {listed}",
        (0, 3): f"caption, {listed}",
        (0, 4): f"name, {listed}",
        (0, 5): f"name, {listed}",
        (0, 6): f"distance 1, {listed}",
    }
    assert {one["reason"] for one in found.values()} == {"in_evaluation_set"}
    assert {one["of_row"] for one in found.values()} == {None}
    assert counts["in_evaluation_set"] == 6


def test_pictures_of_a_folder_of_shards_are_rejected_with_their_near_ones(tmp_path: Path) -> None:
    rows = [row(0, number) for number in range(5)]
    near = row(0, 8, pdq=flipped(hash_of(rows[1]), range(12)))
    flat = row(0, 9, pdq=hash_of(rows[2]), pdq_quality=49)
    same_name_and_caption = row(
        0, 10, picture_id=rows[3]["picture_id"], caption=rows[3]["caption"], source="web"
    )
    rejected = {"part": 0, "row": 11, "source": "web", "reason": "not_json"}
    (tmp_path / "coco" / "metadata").mkdir(parents=True)
    write_rows(
        tmp_path / "coco" / "metadata" / "rows-00000.parquet",
        [rows[0], near, flat, same_name_and_caption, rejected],
        FINAL_COLUMNS,
    )

    found, _ = find(tmp_path, rows, against=(str(tmp_path / "coco"),), near_pictures=12)

    assert {place: one["detail"] for place, one in found.items()} == {
        (0, 0): f"pixels, {tmp_path / 'coco'}",
        (0, 1): f"distance 12, {tmp_path / 'coco'}",
    }
    assert find(tmp_path, rows, against=(str(tmp_path / "coco"),), near_pictures=11)[0].keys() == {
        (0, 0)
    }


def test_a_picture_of_a_set_is_not_what_its_copies_give_way_to(tmp_path: Path) -> None:
    first = row(0, 0)
    far = flipped(hash_of(first), range(20))
    rows = [
        first,
        row(0, 1, pdq=far, caption="listed"),
        row(0, 2, pdq=far),
        row(0, 3, pdq=flipped(far, range(200, 220))),
    ]
    listed = tmp_path / "set.txt"
    listed.write_text(f"id:0-0\ntext:{sha256_of_text('listed')}\n")

    found, _ = find(tmp_path, rows, near_pictures=31, against=(str(listed),))

    assert reasons(found) == {
        (0, 0): ("in_evaluation_set", (None, None)),
        (0, 1): ("in_evaluation_set", (None, None)),
        (0, 3): ("near_duplicate_picture", (0, 2)),
    }


def test_a_listed_caption_of_a_rejected_picture_counts_once(tmp_path: Path) -> None:
    same: dict[str, Any] = {"pixels_sha256": "ab" * 32}
    rows = [
        row(0, 0, **same),
        row(0, 1, **same, caption="listed"),
        row(0, 2, **same),
        row(0, 3, **same, picture_id="0-2", caption="LISTED!"),
    ]
    listed = tmp_path / "set.txt"
    listed.write_text(f"text:{sha256_of_text('Listed')}\n")

    found, counts = find(tmp_path, rows, exact_pictures=True, against=(str(listed),))

    assert reasons(found) == {
        (0, 1): ("in_evaluation_set", (None, None)),
        (0, 2): ("duplicate_picture", (0, 0)),
        (0, 3): ("in_evaluation_set", (None, None)),
    }
    assert (counts["in_evaluation_set"], counts["duplicate_picture"]) == (2, 1)


@pytest.mark.parametrize(
    "line",
    ["pdq:12", "md5:" + 64 * "0", "pdq:" + 64 * "g", "id:", "0001.png", "text:" + 65 * "0"],
)
def test_a_line_that_is_no_entry_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    listed = tmp_path / "set.txt"
    listed.write_text(f"id:a\n{line}\n")

    with pytest.raises(InputError, match=r"set\.txt line 2 is '.*: an entry is pdq:, sha256: or"):
        find(tmp_path, [row(0, 0)], against=(str(listed),))


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "comments.txt").write_text("# the evaluation set\n\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe\n")

    for name, message in (
        ("missing", "there is no file or folder .*missing"),
        ("empty", "has no metadata of launch/build_shards.py"),
        ("comments.txt", "comments.txt holds no entry; add some, or leave it out"),
        ("picture.png", "is not a list of hashes or ids.*UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            find(tmp_path, [row(0, 0)], against=(str(tmp_path / name),))


def test_a_folder_without_pdq_hashes_is_refused(tmp_path: Path) -> None:
    without = {name: value for name, value in row(0, 0).items() if not name.startswith("pdq")}
    write_rows(tmp_path / "rows-00000.parquet", [row(0, 1), without], FINAL_COLUMNS)

    with pytest.raises(InputError, match=r"against: 1 pictures .* have no PDQ hash.*near_pictures"):
        find(tmp_path / "found", [row(0, 0)], against=(str(tmp_path),))
