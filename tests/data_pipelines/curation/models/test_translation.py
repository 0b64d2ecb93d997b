import sys
from pathlib import Path

import pytest

from data_pipelines.curation.models import translation
from data_pipelines.curation.models.folder import ModelFolder
from data_pipelines.curation.models.translation import ModelTranslator
from ernie_vilg.errors import InputError
from tests.data_pipelines.curation.models.tiny_models import (
    TRANSLATION,
    write_translation_model,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_translation_model(tmp_path_factory.mktemp("models") / "translation")


def named(path: Path) -> ModelFolder:
    return ModelFolder(path=path, setting="curation.translation_model")


def test_captions_are_translated_by_the_model(model: Path) -> None:
    translator = ModelTranslator(named(model), prefix=None)
    assert translator.translate(["a red circle", "blue tile"]) == [TRANSLATION, TRANSLATION]
    assert translator.translate([]) == []


def test_caption_of_500_tokens_is_not_translated(model: Path) -> None:
    translator = ModelTranslator(named(model), prefix=None)
    # The pieces are characters; one more marks the beginning of a word, one the end of the text.
    answers = translator.translate(["a" * 498, "a" * 497, "a"])
    assert answers == [None, TRANSLATION, TRANSLATION]


def test_translation_that_does_not_end_is_none(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = ModelTranslator(named(model), prefix=None)
    monkeypatch.setattr(translation, "_MOST_TOKENS", 1 + len(TRANSLATION))  # and the space before
    assert translator.translate(["a"]) == [None]
    monkeypatch.setattr(translation, "_MOST_TOKENS", 2 + len(TRANSLATION))
    assert translator.translate(["a"]) == [TRANSLATION]


@pytest.mark.parametrize(
    ("prefix", "model_adds_end", "expected"),
    [
        pytest.param(None, False, ["▁", "a", "b", "</s>"], id="transformers"),
        pytest.param(None, True, ["▁", "a", "b"], id="marian"),
        pytest.param(">>cmn_Hans<<", False, [">>cmn_Hans<<", "▁", "a", "b", "</s>"], id="prefix"),
    ],
)
def test_model_sees_the_pieces_of_the_caption(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str | None,
    model_adds_end: bool,
    expected: list[str],
) -> None:
    folder = write_translation_model(tmp_path / "model", model_adds_end=model_adds_end)
    translator, seen = ModelTranslator(named(folder), prefix=prefix), []

    class Recorder:
        def translate_batch(self, tokens: list[list[str]], **_: object) -> list[object]:
            seen.extend(tokens)
            return []

    monkeypatch.setattr(translator, "_translator", Recorder())
    with pytest.raises(ValueError, match="zip"):
        translator.translate(["ab"])
    assert seen == [expected]


def test_prefix_that_the_model_does_not_know_is_refused(model: Path) -> None:
    with pytest.raises(InputError, match=r"translation_prefix=>>zho<< is no token"):
        ModelTranslator(named(model), prefix=">>zho<<")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("model.bin", None, "has no model.bin", id="weights"),
        pytest.param("source.spm", None, "has no source.spm, the source side's", id="pieces"),
        pytest.param("target.spm", b"no model", "is no SentencePiece model", id="damaged pieces"),
        pytest.param("model.bin", b"\x80\x04pickle", "ctranslate2 cannot load it", id="pickle"),
    ],
)
def test_unusable_folder_is_refused(
    model: Path, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        ModelTranslator(named(tmp_path), prefix=None)


def test_missing_package_names_its_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(InputError, match=r"translation_model needs.*'ernie-vilg\[translation\]'"):
        ModelTranslator(named(model), prefix=None)
