"""Annotations find their pictures by id; those that do not are counted."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.rejections import Reason
from data_pipelines.sources.rows import RawPair
from tests.data_pipelines.sources.reading import (
    captions_of,
    open_source,
    pairs_of,
    read,
    reasons_of,
)


def write(folder: Path, name: str, content: Any) -> Path:
    for image in "ab":
        (folder / f"{image}.jpg").write_bytes(image.encode())
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def coco(*annotations: Any, images: Any = None) -> dict[str, Any]:
    pictures = [{"id": 1, "file_name": "a.jpg", "license": 3}, {"id": 2, "file_name": "b.jpg"}]
    return {"images": pictures if images is None else images, "annotations": list(annotations)}


def test_annotations_follow_the_order_of_the_pictures(tmp_path: Path) -> None:
    content = coco(
        {"id": 10, "image_id": 2, "caption": "b1"},
        {"id": 11, "image_id": 1, "caption": "a1"},
        {"id": 12, "image_id": 2, "caption": "b2"},
    )
    path = write(tmp_path, "captions_val.json", content)

    rows = read(path, tmp_path / "work", rows_per_part=2)

    assert pairs_of(rows) == [(b"a", "a1"), (b"b", "b1"), (b"b", "b2")]
    assert isinstance(rows[0], RawPair)
    assert rows[0].place == "captions_val.json annotation 2"
    assert rows[0].record == {
        "image": "a.jpg",
        "license": 3,
        "image_id": 1,
        "annotation_id": 11,
        "caption": "a1",
    }


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        pytest.param({"image_id": 9, "caption": "x"}, Reason.NO_SUCH_PICTURE, id="unknown"),
        pytest.param({"image_id": "1", "caption": "x"}, Reason.NO_SUCH_PICTURE, id="a text"),
        pytest.param({"image_id": True, "caption": "x"}, Reason.NO_SUCH_PICTURE, id="true is no 1"),
        pytest.param({"image_id": [1], "caption": "x"}, Reason.NO_SUCH_PICTURE, id="a list"),
        pytest.param({"caption": "x"}, Reason.NO_SUCH_PICTURE, id="no id"),
        pytest.param({"image_id": 1}, Reason.MISSING_FIELD, id="no caption"),
        pytest.param({"image_id": 1, "caption": None}, Reason.MISSING_FIELD, id="null"),
        pytest.param({"image_id": 1, "caption": 7}, Reason.MISSING_FIELD, id="a number"),
        pytest.param("x", Reason.MISSING_FIELD, id="no object"),
        pytest.param(
            {"image_id": 1, "caption": "x" * (2 << 20)}, Reason.CAPTION_TOO_LONG, id="2 MB"
        ),
        pytest.param({"image_id": 3, "caption": "x"}, Reason.NO_SUCH_PICTURE, id="ambiguous"),
        pytest.param({"image_id": 4, "caption": "x"}, Reason.MISSING_FIELD, id="no file name"),
        pytest.param({"image_id": 5, "caption": "x"}, Reason.UNSAFE_PATH, id="a path out"),
    ],
)
def test_an_annotation_without_a_picture_is_counted(
    tmp_path: Path, annotation: Any, reason: Reason
) -> None:
    images = [
        {"id": 1, "file_name": "a.jpg"},
        {"id": 3, "file_name": "a.jpg"},
        {"id": 3, "file_name": "b.jpg"},
        {"id": 4},
        {"id": 5, "file_name": "../a.jpg"},
        "no object",
    ]
    good = {"image_id": 1, "caption": "good"}
    path = write(tmp_path, "x.json", coco(annotation, good, images=images))

    rows = read(path, tmp_path / "work")

    assert captions_of(rows) == ["good"]
    assert reasons_of(rows) == {reason: 1}


def test_pictures_without_a_caption_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "x.json", coco({"image_id": 1, "caption": "x"}))

    with caplog.at_level(logging.WARNING):
        open_source(path, tmp_path / "work")

    assert "1 of 2 pictures have no caption" in caplog.text


def test_a_file_is_parsed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "x.json", coco({"image_id": 1, "caption": "x"}))
    open_source(path, tmp_path / "work", layout="coco")
    caplog.clear()

    open_source(path, tmp_path / "work", layout="coco")

    assert not caplog.messages


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "not of COCO's form"),
        ("[NaN", "is not valid JSON"),
        ('{"images": [], "annotations": [{"id": NaN}]}', "NaN is not a JSON value"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path, "x.json", content)

    with pytest.raises(ValueError, match=message):
        open_source(path, tmp_path / "work", layout="coco")


def test_a_list_has_a_row_for_every_caption(tmp_path: Path) -> None:
    items = [
        {"image_id": "a.jpg", "caption": ["one", "two"], "url": "u"},
        {"image_id": "b", "caption": ["three", None]},
        {"image_id": 7, "caption": ["x"]},
        "no object",
    ]
    path = write(tmp_path, "caption_train.json", items)

    rows = read(path, tmp_path / "work")

    assert pairs_of(rows) == [(b"a", "one"), (b"a", "two"), (b"b", "three")]
    assert reasons_of(rows) == {Reason.MISSING_FIELD: 3}
    assert isinstance(rows[0], RawPair)
    assert rows[0].record == {"image_id": "a.jpg", "caption": "one", "url": "u", "image": "a.jpg"}


def test_coco_cn_finds_its_pictures_in_the_folders_of_coco(tmp_path: Path) -> None:
    (tmp_path / "coco" / "val2014").mkdir(parents=True)
    (tmp_path / "coco" / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(b"42")
    lines = [
        "COCO_val2014_000000000042#0\t一只猫",
        "COCO_val2014_000000000042#1\t猫\t坐着",
        "no line of this form",
        "COCO_train2014_000000000001#0\t狗",
    ]
    path = write(tmp_path, "imageid.human-written-caption.txt", "\n".join(lines) + "\n")

    rows = read(path, tmp_path / "work", images_root=str(tmp_path / "coco"))

    assert pairs_of(rows) == [(b"42", "一只猫"), (b"42", "猫\t坐着")]
    assert reasons_of(rows) == {Reason.NOT_A_ROW: 1, Reason.MISSING_IMAGE: 1}
    assert len({row.picture_id for row in rows if isinstance(row, RawPair)}) == 1


def test_a_list_of_pictures_chooses_those_of_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "coco-cn"
    folder.mkdir()
    ids = [f"COCO_train2014_{number:012d}" for number in range(3)]
    path = folder / "imageid.human-written-caption.txt"
    path.write_text("".join(f"{name}#0\t猫{name[-1]}\n" for name in ids), encoding="utf-8")
    for name in ids:
        (folder / f"{name}.jpg").write_bytes(b"picture")
    chosen = folder / "coco-cn_val.txt"
    chosen.write_text(f"{ids[2]}\n{ids[0]}.jpg\nCOCO_val2014_000000000009\n")

    rows = read(path, tmp_path / "work", image_list=str(chosen))
    assert captions_of(rows) == ["猫0", "猫2"]

    chosen.write_text(f"{ids[1]}\n")  # a changed list is noticed
    assert captions_of(read(path, tmp_path / "work", image_list=str(chosen))) == ["猫1"]

    chosen.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"image_list=.* names none of the pictures of"):
        read(path, tmp_path / "work", image_list=str(chosen))
    with pytest.raises(ValueError, match=r"image_list=.*no.txt is no file"):
        read(path, tmp_path / "work", image_list=str(tmp_path / "no.txt"))
