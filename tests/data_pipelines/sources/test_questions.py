"""Questions about pictures with their answers, as FM-IQA and tables have them."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.rejections import Reason
from data_pipelines.sources.rows import RawPair
from tests.data_pipelines.sources.reading import captions_of, read, reasons_of

PICTURE = b"the bytes of a picture"
QUESTION, ANSWER = "图中有几只猫？", "两只。"
TEXT = f"{QUESTION}\u241f{ANSWER}"


def item(image_id: Any, **others: Any) -> dict[str, Any]:
    return {"image_id": image_id, "Question": QUESTION, "Answer": ANSWER, **others}


def write_file(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "FM-CH-QA.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)


@pytest.mark.parametrize(
    ("image_id", "place"),
    [
        pytest.param("42", "train2014/COCO_train2014_000000000042.jpg", id="of its own split"),
        pytest.param(42, "val2014/COCO_val2014_000000000042.jpg", id="a number, other split"),
        pytest.param("42", "COCO_train2014_000000000042.jpg", id="all in one folder"),
        pytest.param("COCO_val2014_000000000042", "val2014/COCO_val2014_000000000042.jpg", id="id"),
        pytest.param("my/cat.png", "my/cat.png", id="another file"),
    ],
)
def test_a_picture_is_found_by_its_id(tmp_path: Path, image_id: Any, place: str) -> None:
    write_pictures(tmp_path / "coco", place)
    path = write_file(tmp_path / "qa", {"train": [item(image_id, id=7)], "val": [item("9")]})

    (row,) = read(path, tmp_path / "work", split="train", images_root=str(tmp_path / "coco"))

    assert isinstance(row, RawPair)
    assert row.picture.read() == PICTURE
    assert (row.picture_id, row.caption) == (place, TEXT)
    assert row.place == "FM-CH-QA.json train 1"
    assert row.record["id"] == 7
    assert row.record["question"] == QUESTION


def test_what_is_no_question_is_rejected(tmp_path: Path) -> None:
    write_pictures(tmp_path / "qa", "1.jpg")
    rows = read(
        write_file(
            tmp_path / "qa",
            {
                "train": [
                    item("1.jpg"),
                    item("1.jpg"),
                    {"image_id": "1.jpg", "Question": QUESTION},
                    {"image_id": "1.jpg", "Answer": ANSWER},
                    item(None),
                    item("77"),
                    "text",
                ]
            },
        ),
        tmp_path / "work",
    )

    assert captions_of(rows) == [TEXT]
    assert reasons_of(rows) == {
        Reason.DUPLICATE_KEY: 1,
        Reason.MISSING_FIELD: 4,
        Reason.MISSING_IMAGE: 1,
    }


def test_a_file_of_several_lists_needs_a_split(tmp_path: Path) -> None:
    path = write_file(tmp_path / "qa", {"train": [item("1")], "val": [item("2")]})

    with pytest.raises(ValueError, match=r"split=null: .* has the lists train, val: set split"):
        read(path, tmp_path / "work")
    with pytest.raises(ValueError, match="split=test: "):
        read(path, tmp_path / "work", split="test")


def test_another_json_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "qa", {"train": [{"image_id": "1", "caption": "猫"}]})

    with pytest.raises(ValueError, match="is not of FM-IQA's form"):
        read(path, tmp_path / "work", layout="question_answers")


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        pytest.param(("question", "answer"), {}, id="usual names"),
        pytest.param(("q", "answer"), {"question_key": "q"}, id="a name for the question"),
        pytest.param(("q", "a"), {"question_key": "q", "caption_key": "a"}, id="names"),
    ],
)
@pytest.mark.parametrize("file", ["pairs.jsonl", "captions.jsonl"])
def test_a_table_has_questions(
    tmp_path: Path, file: str, columns: tuple[str, str], settings: dict[str, str]
) -> None:
    write_pictures(tmp_path / "raw", "1.jpg", "2.jpg")
    question, answer = columns
    lines = [
        {"image": "1.jpg", question: QUESTION, answer: [ANSWER, "2只"]},
        {"image": "2.jpg", answer: ANSWER},
    ]
    path = tmp_path / "raw" / file
    path.write_text("\n".join(map(json.dumps, lines)))
    location = path.parent if file == "captions.jsonl" else path

    rows = read(location, tmp_path / "work", **settings)

    assert captions_of(rows) == [TEXT, f"{QUESTION}\u241f2只"]
    assert reasons_of(rows) == {Reason.MISSING_FIELD: 1}


def test_a_table_of_captions_has_none(tmp_path: Path) -> None:
    write_pictures(tmp_path / "raw", "1.jpg")
    line = {"image": "1.jpg", "caption": "猫\u241f狗", "question": QUESTION, "answer": ANSWER}
    (tmp_path / "raw" / "pairs.jsonl").write_text(json.dumps(line))

    rows = read(tmp_path / "raw" / "pairs.jsonl", tmp_path / "work")

    assert captions_of(rows) == ["猫 狗"]
