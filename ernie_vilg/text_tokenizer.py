"""The text tokenizer: a frozen SentencePiece model, and the hash that identifies it.

NFKC normalises text, so full-width and half-width forms share their pieces. A character without a
piece becomes its UTF-8 bytes, so every text has ids and none is unknown. Text never gives special
ids: a caption that contains "</s>" gets the pieces of those four characters. Only `QUESTION_END`,
which no caption has, becomes BEGIN_OF_TEXT_ID.

NFKC also turns the full-width comma of Chinese into an ASCII one. `decode` restores full-width
marks where Chinese typography has them (see `restore_full_width`), so that captions come back as
they were written.

Source: SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226); the restoring of full-width
marks is ours.
"""

import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file, write_bytes, write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    END_OF_TEXT_ID,
    FIRST_BYTE_ID,
    NUM_BYTES,
    NUM_SPECIAL_IDS,
    PADDING_ID,
    QUESTION_END,
    UNKNOWN_ID,
)

MODEL_FILE = "text_tokenizer.model"
DESCRIPTION_FILE = "text_tokenizer.json"
FORMAT_VERSION = 1

SPECIAL_IDS = {
    "padding": PADDING_ID,
    "unknown": UNKNOWN_ID,
    "begin_of_text": BEGIN_OF_TEXT_ID,
    "end_of_text": END_OF_TEXT_ID,
}

_FULL_WIDTH = {",": "，", ";": "；", ":": "：", "?": "？", "!": "！"}
# CJK punctuation, kana, Chinese characters, full-width forms, Chinese characters beyond the
# basic plane. Not Hangul: Korean is written with ASCII marks.
_CJK = re.compile(
    "[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_MAX_CAPTION_BYTES = 1 << 20  # SentencePiece silently skips longer ones; its default is 4192
_RESERVED = "\u2585"  # SentencePiece's mark for a rare character; it skips text that contains it

logger = logging.getLogger(__name__)


class TextTokenizer:
    """Trained text tokenizer."""

    def __init__(self, model: bytes, sha256: str) -> None:
        """Take a SentencePiece model.

        Args:
            model: the serialised model.
            sha256: hash of the model, 64 hexadecimal digits; token shards and weights record it.

        Raises:
            InputError: it is not a SentencePiece model, or its special ids or bytes differ from
                those of `ernie_vilg.vocabulary`.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, UnicodeDecodeError) as error:  # its error message may not be UTF-8
            raise InputError(
                f"the text tokenizer's model is not a SentencePiece model ({error}): train it "
                "with launch/train_text_tokenizer.py"
            ) from error
        self.sha256 = sha256
        self.vocab_size: int = self._processor.vocab_size()
        """Number of ids, special ones included."""
        _check_ids(self._processor)

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Read a text tokenizer that `launch/train_text_tokenizer.py` wrote.

        Raises:
            InputError: a file is missing, or the model differs from its recorded hash.
        """
        description = _read_description(folder)
        path = folder / MODEL_FILE
        sha256 = sha256_of_file(path)
        if sha256 != description.get("sha256"):
            raise InputError(
                f"{path} has SHA-256 {sha256} where {DESCRIPTION_FILE} records "
                f"{description.get('sha256')}: it is damaged or was replaced; copy both files again"
            )
        return cls(path.read_bytes(), sha256)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special ids.

        A question and its answer, with QUESTION_END between them, have BEGIN_OF_TEXT_ID there.
        """
        question, end, answer = text.partition(QUESTION_END)
        ids: list[int] = self._processor.encode(question, out_type=int)
        return [*ids, BEGIN_OF_TEXT_ID, *self.encode(answer)] if end else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids.

        BEGIN_OF_TEXT_ID becomes QUESTION_END; other special ids are skipped. Bytes that are not
        UTF-8, which a model may generate, become U+FFFD.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise InputError(
                f"text ids from {min(ids)} to {max(ids)}: this text tokenizer has ids from 0 to "
                f"{self.vocab_size - 1}; use the text tokenizer that the ids were made with"
            )
        if BEGIN_OF_TEXT_ID in ids:
            begin = list(ids).index(BEGIN_OF_TEXT_ID)
            return self.decode(ids[:begin]) + QUESTION_END + self.decode(ids[begin + 1 :])
        pieces = [int(piece_id) for piece_id in ids if piece_id >= NUM_SPECIAL_IDS]
        text: str = self._processor.decode(pieces)
        # SentencePiece encodes a space as U+2581, and returns U+2581 if the space has no piece.
        return restore_full_width(text.replace("\u2581", " "))


def train_text_tokenizer(captions: Iterable[str], config: TrainTextTokenizerConfig) -> bytes:
    """Train a SentencePiece model.

    The same captions and settings give the same model: SentencePiece runs on one thread and samples
    nothing.

    Args:
        captions: training text without line breaks. SentencePiece reserves U+2585; it is removed
            from captions that contain it, and their number is logged.
        config: size and kind of the vocabulary.

    Returns:
        the serialised model.

    Raises:
        InputError: SentencePiece cannot learn this vocabulary from these captions, or one of them
            cannot be read or is too long.
    """
    model, sentences = io.BytesIO(), _Sentences(captions)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            max_sentencepiece_length=config.max_piece_length,
            max_sentence_length=_MAX_CAPTION_BYTES,
            hard_vocab_limit=False,  # few captions may have fewer pieces than asked for
            byte_fallback=True,
            normalization_rule_name="nfkc",
            add_dummy_prefix=False,  # no space before the first character: Chinese has none
            pad_id=PADDING_ID,
            unk_id=UNKNOWN_ID,
            bos_id=BEGIN_OF_TEXT_ID,
            eos_id=END_OF_TEXT_ID,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if sentences.error is not None:  # SentencePiece keeps only its message
            raise sentences.error from None
        given = f"vocab_size={config.vocab_size}, character_coverage={config.character_coverage}"
        if (needed := _TOO_SMALL.search(str(error))) is not None:
            raise InputError(
                f"{given}: the characters and bytes of these captions alone take {needed[1]} ids: "
                f"set vocab_size to at least {needed[1]}, or a smaller character_coverage, which "
                "writes the rarest characters as bytes (three ids each in Chinese)"
            ) from error
        raise InputError(
            f"{given}: SentencePiece cannot learn it from these captions ({error}); set a larger "
            "vocab_size, a smaller character_coverage, or name shards with more captions"
        ) from error
    return model.getvalue()


_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
"""Message of SentencePiece, with the number of ids that are required."""


class _Sentences:
    """Captions in a form that SentencePiece accepts; it silently drops others."""

    def __init__(self, captions: Iterable[str]) -> None:
        self._captions = captions
        self.error: Exception | None = None
        """Error that ended the reading of captions."""

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._checked()
        except Exception as error:
            self.error = error
            raise

    def _checked(self) -> Iterator[str]:
        num_reserved = 0
        for caption in self._captions:
            num_bytes = len(caption.encode())
            if num_bytes > _MAX_CAPTION_BYTES:
                raise InputError(
                    f"a caption has {num_bytes:,} bytes ({caption[:40]!r}...), at most "
                    f"{_MAX_CAPTION_BYTES:,} are allowed: shorten it"
                )
            num_reserved += _RESERVED in caption
            yield from filter(None, caption.split(_RESERVED))
        if num_reserved:
            logger.warning(
                "%d captions contain U+2585, which SentencePiece reserves: it is removed from the "
                "training text and will be encoded as bytes",
                num_reserved,
            )


def write_text_tokenizer(folder: Path, model: bytes, made_from: Mapping[str, Any]) -> TextTokenizer:
    """Write a trained model with its hash.

    Args:
        folder: empty folder for two files, which the caller commits (see `committed_folder`).
        model: the serialised model.
        made_from: settings and data of the training, recorded for people.

    Returns:
        the text tokenizer, loaded from what was written.
    """
    write_bytes(folder / MODEL_FILE, model)
    sha256 = sha256_of_file(folder / MODEL_FILE)
    description = {
        "format_version": FORMAT_VERSION,
        "sha256": sha256,
        "vocab_size": TextTokenizer(model, sha256).vocab_size,
        "special_ids": SPECIAL_IDS,
        "made_from": dict(made_from),
    }
    write_json(folder / DESCRIPTION_FILE, description)
    return TextTokenizer.load(folder)


def read_vocab_size(folder: Path) -> int:
    """Return the number of ids that a text tokenizer's folder records, without loading the model.

    Raises:
        InputError: a file is missing or has another format.
    """
    found = _read_description(folder).get("vocab_size")
    if not isinstance(found, int) or isinstance(found, bool) or found <= NUM_SPECIAL_IDS:
        raise InputError(
            f"{folder / DESCRIPTION_FILE} has vocab_size {found!r} where a number of ids above "
            f"{NUM_SPECIAL_IDS} belongs: copy the whole folder again"
        )
    return found


def restore_full_width(text: str) -> str:
    """Restore the full-width marks of Chinese that NFKC made ASCII.

    A mark `, ; : ? !` becomes full-width directly after a CJK character, unless a space follows it,
    as in "按键: #". An opening parenthesis becomes full-width in the same case, and at the start of
    a text whose next character is CJK; a closing one has the width of its opening one. A Chinese
    text that was written with ASCII marks comes back with full-width ones, because NFKC makes the
    two equal.
    """
    restored: list[str] = []
    open_is_full_width: list[bool] = []
    for index, mark in enumerate(text):
        before = restored[-1] if restored else ""
        after = text[index + 1 : index + 2]
        follows_cjk = _is_cjk(before) and not after.isspace()
        if mark in _FULL_WIDTH and follows_cjk:
            restored.append(_FULL_WIDTH[mark])
        elif mark == "(":
            open_is_full_width.append(follows_cjk or (not before and _is_cjk(after)))
            restored.append("（" if open_is_full_width[-1] else mark)
        elif mark == ")" and open_is_full_width and open_is_full_width.pop():
            restored.append("）")
        else:
            restored.append(mark)
    return "".join(restored)


def _read_description(folder: Path) -> dict[str, Any]:
    for name in (MODEL_FILE, DESCRIPTION_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}: name a folder written by launch/train_text_tokenizer.py"
            )
    description = read_object(folder / DESCRIPTION_FILE)
    if description.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder / DESCRIPTION_FILE} has format_version "
            f"{description.get('format_version')}, this code reads {FORMAT_VERSION}: train "
            "the text tokenizer again"
        )
    return description


def _is_cjk(character: str) -> bool:
    return _CJK.fullmatch(character) is not None


def _check_ids(processor: Any) -> None:
    found = {
        "padding": processor.pad_id(),
        "unknown": processor.unk_id(),
        "begin_of_text": processor.bos_id(),
        "end_of_text": processor.eos_id(),
    }
    if found != SPECIAL_IDS:
        raise InputError(
            f"the text tokenizer's special ids are {found} where {SPECIAL_IDS} are required: "
            "train it with launch/train_text_tokenizer.py"
        )
    end = FIRST_BYTE_ID + NUM_BYTES
    pieces = [
        processor.id_to_piece(i) for i in range(FIRST_BYTE_ID, min(end, processor.vocab_size()))
    ]
    if pieces != [f"<0x{byte:02X}>" for byte in range(NUM_BYTES)]:
        raise InputError(
            f"the text tokenizer's ids {FIRST_BYTE_ID} to {end - 1} are not the {NUM_BYTES} bytes, "
            "which is required: train it with launch/train_text_tokenizer.py"
        )
