"""Loading of the models that the rules of a source need, and their hashes."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.curation.models.folder import ModelFolder
from data_pipelines.curation.models.scorers import PairScorer, PictureScorer
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file

_LABELS: Mapping[str, tuple[str, ...]] = {
    "nsfw_model": ("nsfw",),
    "watermark_model": ("watermark", "watermarked"),
}
"""Names of the wanted label of each classifier."""

_RULES: Mapping[str, str] = {
    "min_similarity": "similarity_model",
    "max_nsfw": "nsfw_model",
    "max_watermark": "watermark_model",
}
"""Setting of the model that each rule needs."""


class Translator(Protocol):
    """Translation of captions, by a model or a file."""

    @property
    def why_none(self) -> str:
        """Reason for a caption without a translation, for people."""
        ...

    def translate(self, captions: Sequence[str]) -> list[str | None]:
        """Return translations of clean captions, clean as well; None where there is none."""
        ...


class Detector(Protocol):
    """Search for text in pictures."""

    def area(self, image: Any) -> float:
        """Return the share of a picture that lies within lines of text, 0 to 1."""
        ...


def load_pair_scorer(config: CurationConfig, rules: Rules) -> PairScorer | None:
    """Return the model behind `min_similarity`; None where that rule is off.

    Raises:
        InputError: the model or its package is missing.
    """
    folder = _folder(config, rules, "min_similarity")
    return None if folder is None else _pair_scorer(folder, config.device)


def load_picture_scorer(config: CurationConfig, rules: Rules, rule: str) -> PictureScorer | None:
    """Return the model behind `max_nsfw` or `max_watermark`; None where that rule is off.

    Raises:
        InputError: the model or its package is missing.
    """
    folder, labels = _folder(config, rules, rule), _LABELS[_RULES[rule]]
    return None if folder is None else _picture_scorer(folder, labels, config.device)


def load_text_detector(rules: Rules) -> Detector | None:
    """Return the model behind `max_text_area`; None where that rule is off.

    Raises:
        InputError: its package is missing.
    """
    return None if rules.max_text_area is None else _text_detector()


def load_translator(config: CurationConfig, rules: Rules) -> Translator | None:
    """Return what translates captions; None where `translate` is off.

    Raises:
        InputError: the model or its package is missing.
    """
    if not rules.translate:
        return None
    if config.translation_file is not None:
        from data_pipelines.curation.models.translation_file import FileTranslator

        return FileTranslator(Path(config.translation_file))
    return _model_translator(
        _model_folder("translation_model", config.translation_model),
        config.translation_prefix,
        config.device,
    )


def model_hashes(config: CurationConfig, rules: Iterable[Rules]) -> dict[str, str]:
    """Return the SHA-256 of everything that the rules of all sources load, by its setting.

    Args:
        config: the settings, with the file of translations as the person gave it.
        rules: rules of every source.

    Raises:
        InputError: a model is missing or is not the required one.
    """
    hashes = {}
    for one in rules:
        for rule in _RULES:
            folder = _folder(config, one, rule)
            if folder is not None and _RULES[rule] not in hashes:
                hashes[_RULES[rule]] = folder.sha256()
        if one.max_text_area is not None and "text_detector" not in hashes:
            from data_pipelines.curation.models.text_in_pictures import text_detector_sha256

            hashes["text_detector"] = text_detector_sha256()
        if one.translate:
            hashes.update(_translation_hash(config))
    _check_required(config, hashes)
    return hashes


def _translation_hash(config: CurationConfig) -> dict[str, str]:
    if config.translation_file is not None:
        return {"translation_file": sha256_of_file(_file(config.translation_file))}
    folder = _model_folder("translation_model", config.translation_model)
    return {"translation_model": folder.sha256()}


def _check_required(config: CurationConfig, hashes: Mapping[str, str]) -> None:
    found, required = hashes.get("similarity_model"), config.similarity_sha256
    if found is not None and required is not None and found != required:
        raise InputError(
            f"curation.similarity_model={config.similarity_model} has the hash {found}, not "
            f"curation.similarity_sha256={required}: name the folder of that model, or set the "
            "hash to the model's or to null"
        )


def _folder(config: CurationConfig, rules: Rules, rule: str) -> ModelFolder | None:
    setting = _RULES[rule]
    return (
        None if getattr(rules, rule) is None else _model_folder(setting, getattr(config, setting))
    )


def _model_folder(setting: str, location: str | None) -> ModelFolder:
    assert location is not None, "CurationConfig.rules_of refuses rules without their model"
    folder = ModelFolder(path=Path(location), setting=f"curation.{setting}")
    if not folder.path.is_dir():
        raise InputError(f"{folder} is no folder: name the folder of the model")
    return folder


def _file(location: str) -> Path:
    if not Path(location).is_file():
        raise InputError(f"curation.translation_file={location} is no file: name one")
    return Path(location)


# The rules of several sources share the models of a process.


@functools.cache
def _pair_scorer(folder: ModelFolder, device: str) -> PairScorer:
    from data_pipelines.curation.models.clip import ClipScorer

    return ClipScorer(folder, device=device)


@functools.cache
def _picture_scorer(folder: ModelFolder, labels: Sequence[str], device: str) -> PictureScorer:
    from data_pipelines.curation.models.classifier import ClassifierScorer

    return ClassifierScorer(folder, labels=labels, device=device)


@functools.cache
def _text_detector() -> Detector:
    from data_pipelines.curation.models.text_in_pictures import TextDetector

    return TextDetector()


@functools.cache
def _model_translator(folder: ModelFolder, prefix: str | None, device: str) -> Translator:
    from data_pipelines.curation.models.translation import ModelTranslator

    return ModelTranslator(folder, prefix=prefix, device=device)
