"""Every layout of the same pairs gives the same pictures and captions in the same order."""

from pathlib import Path

import pytest

from tests.data_pipelines.layouts import LAYOUTS, read_rows, write_lines
from tests.data_pipelines.sources.reading import pairs_of, read, reasons_of

EMOJI = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "noto-emoji"
NUM_EMOJI = 3315

emoji = pytest.mark.skipif(not EMOJI.is_dir(), reason=f"there is no {EMOJI}")


def check(name: str, tmp_path: Path, count: int) -> None:
    rows = read_rows(EMOJI, count=count)
    location = LAYOUTS[name](EMOJI, rows, tmp_path / "raw")

    found = read(location, tmp_path / "work", rows_per_part=count // 3)

    expected = [((EMOJI / row["image"]).read_bytes(), row["caption"]) for row in rows]
    assert reasons_of(found) == {}
    assert pairs_of(found) == expected


@emoji
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_holds_the_same_emoji(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, 40)


@emoji
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_holds_all_emoji(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, NUM_EMOJI)


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"img2dataset", "parquet_pictures"}))
def test_captions_of_one_picture_follow_each_other(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    captions = {"a.png": ["红,\n辣椒", 'x "y" z'], "b.png": ["\t圆", "方", " "]}
    pairs = [(image, text) for image, texts in captions.items() for text in texts]
    write_lines(
        source / "captions.jsonl", [{"image": image, "caption": text} for image, text in pairs]
    )
    for image in captions:
        (source / image).write_bytes(image.encode())
    location = LAYOUTS[name](source, read_rows(source), tmp_path / "raw")

    found = read(location, tmp_path / "work", rows_per_part=2)

    assert pairs_of(found) == [(image.encode(), text) for image, text in pairs]
    assert len({row.picture_id for row in found if hasattr(row, "picture_id")}) == 2
