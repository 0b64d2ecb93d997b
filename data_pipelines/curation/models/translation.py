"""Translation of captions by a model of ctranslate2.

Source: Marian's translation models (Junczys-Dowmunt et al. 2018, arXiv:1804.00344), which OPUS-MT
publishes; beam search with 4 beams.
"""

from collections.abc import Sequence
from typing import Any

from data_pipelines.captions import clean_caption
from data_pipelines.curation.extras import import_extra
from data_pipelines.curation.models.folder import CONFIG, ModelFolder
from data_pipelines.rejections import RejectedError
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_json

_EXTRA = "translation"
_BEAM_SIZE = 4
_BATCH_SIZE = 32
_MOST_TOKENS = 500
"""Tokens that a caption or a translation must stay below; Marian's models know 512 positions."""


class ModelTranslator:
    """Translates captions by a Marian model: a `Translator`."""

    why_none = f"it or its translation has {_MOST_TOKENS} tokens or more, or there is none"

    def __init__(self, folder: ModelFolder, *, prefix: str | None, device: str = "auto") -> None:
        """Load the model.

        Args:
            folder: `model.bin`, `config.json` and vocabularies as ctranslate2's converters write
                them, and the model's `source.spm` and `target.spm` of SentencePiece.
            prefix: token before each caption, such as ">>cmn_Hans<<"; None for none.
            device: cpu, cuda, cuda:INDEX or auto.

        Raises:
            InputError: ctranslate2 is missing, or the folder holds no such model.
        """
        library = import_extra("ctranslate2", extra=_EXTRA, setting=folder.setting)
        folder.require("model.bin", "the weights as ctranslate2 converts them")
        settings = folder.json(CONFIG, "ctranslate2's settings of the model")
        self._source, self._target = (_pieces(folder, side) for side in ("source", "target"))
        self._prefix = [] if prefix is None else [prefix]
        if prefix is not None and prefix not in _source_vocabulary(folder):
            raise InputError(
                f"curation.translation_prefix={prefix} is no token of {folder}: set a token of its "
                "source vocabulary, or null"
            )
        # Models that were converted from Marian's own files add the end themselves.
        end = str(settings.get("eos_token", "</s>"))
        self._suffix = [] if settings.get("add_source_eos") else [end]
        kind, index = _device(library, device)
        try:
            self._translator = library.Translator(
                str(folder.path),
                device=kind,
                device_index=index,
                inter_threads=1,  # processes share the cores, and sums stay the same
                intra_threads=1,
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{folder}: ctranslate2 cannot load it ({error})") from error

    def translate(self, captions: Sequence[str]) -> list[str | None]:
        """Return translations of clean captions, clean as well; None where there is none."""
        tokens = [
            [*self._prefix, *self._source.encode(caption, out_type=str), *self._suffix]
            for caption in captions
        ]
        short = [number for number, line in enumerate(tokens) if len(line) < _MOST_TOKENS]
        answers: list[str | None] = [None] * len(captions)
        results = self._translator.translate_batch(
            [tokens[number] for number in short],
            max_batch_size=_BATCH_SIZE,
            beam_size=_BEAM_SIZE,
            max_decoding_length=_MOST_TOKENS,
        )
        for number, result in zip(short, results, strict=True):
            words = result.hypotheses[0]
            if len(words) < _MOST_TOKENS:  # else it was cut, mostly out of a loop
                answers[number] = clean_or_none(self._target.decode(words))
        return answers


def clean_or_none(text: str) -> str | None:
    """Return a translation as captions are cleaned; None where nothing is left of it."""
    try:
        return clean_caption(text, max_characters=len(text))
    except RejectedError:
        return None


def _pieces(folder: ModelFolder, side: str) -> Any:
    """Return SentencePiece's model of one side."""
    import sentencepiece

    path = folder.require(f"{side}.spm", f"the {side} side's SentencePiece model")
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError as error:
        raise InputError(f"{path} is no SentencePiece model: copy it again") from error
    return pieces


def _source_vocabulary(folder: ModelFolder) -> list[str]:
    for name in ("shared_vocabulary", "source_vocabulary"):
        if (folder.path / f"{name}.json").is_file():
            return list(read_json(folder.path / f"{name}.json"))
        if (folder.path / f"{name}.txt").is_file():
            return (folder.path / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    raise InputError(f"{folder} has no vocabulary: convert the model again with ctranslate2")


def _device(library: Any, setting: str) -> tuple[str, int]:
    if setting == "auto":
        return ("cuda" if library.get_cuda_device_count() else "cpu"), 0
    kind, _, index = setting.partition(":")
    return kind, int(index or 0)
