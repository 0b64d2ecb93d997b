import json
from pathlib import Path

import pytest

from data_pipelines.curation.models.translation_file import FileTranslator, write_lookup
from ernie_vilg.errors import InputError


def write(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def pair(text: object, translation: object) -> dict[str, object]:
    return {"text": text, "translation": translation, "more": "ignored"}


def test_captions_are_looked_up(tmp_path: Path) -> None:
    file = write(
        tmp_path / "translations.jsonl",
        pair("a red circle", "红色的圆"),
        pair("  a\tblue\u200b tile ", " 蓝色的\u202e 方块\n"),  # both are cleaned as captions are
        pair("a red circle", "红色的圆"),  # the same again
        pair("nothing", "  "),
        pair(" ", "空"),
        "",
        pair("it's 100 % 'new'", "新"),
    )
    translator = FileTranslator(write_lookup(file, tmp_path))
    texts = ["it's 100 % 'new'", "a blue tile", "a red circle", "nothing", "a red", ""]
    assert translator.translate(texts) == ["新", "蓝色的 方块", "红色的圆", None, None, None]


def test_database_is_made_once_for_the_same_file(tmp_path: Path) -> None:
    file = write(tmp_path / "translations.jsonl", pair("a", "甲"))
    lookup = write_lookup(file, tmp_path)
    made = lookup.stat()
    (tmp_path / f".writing-{lookup.name}-1").write_bytes(b"of a killed process")
    assert write_lookup(file, tmp_path).stat() == made
    other = write_lookup(write(file, pair("a", "乙")), tmp_path)
    assert FileTranslator(lookup).translate(["a"]) == ["甲"]
    assert FileTranslator(other).translate(["a"]) == ["乙"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(["{"], "line 1 is not valid JSON", id="json"),
        pytest.param([pair("a", "甲"), {"text": "b"}], r"line 2 is not \{\"text\"", id="key"),
        pytest.param([pair("a", ["甲"])], "line 1 is not", id="kind"),
        pytest.param(
            [pair("a", "甲"), pair("b", "乙"), pair("a ", "丙")],
            "lines 1 and 3 translate the same text in two ways",
            id="two translations",
        ),
        pytest.param(
            [pair("a" * (1 << 20), "甲")], "line 1 has more than 1,048,576 bytes", id="long"
        ),
    ],
)
def test_unusable_line_is_refused(tmp_path: Path, lines: list[object], message: str) -> None:
    file = write(tmp_path / "translations.jsonl", *lines)
    (tmp_path / "work").mkdir()
    with pytest.raises(InputError, match=message):
        write_lookup(file, tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
