"""Text to ids and back: a frozen SentencePiece model and the hash that names it.

Text is normalised by NFKC, so full-width and half-width forms share their pieces; a character
without a piece becomes its UTF-8 bytes, so every text has ids and none is unknown. Special ids
are never read out of text: a caption that contains "</s>" gets the pieces of those four
characters.

NFKC also turns the full-width comma of Chinese into an ASCII one. `decode` puts full-width
marks back where Chinese typography has them (see `restore_full_width`), so that captions come
back as they were written.

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
_RESERVED = "\u2585"  # SentencePiece's own sign for a rare character; it skips what holds one

logger = logging.getLogger(__name__)


class TextTokenizer:
    """A trained text tokenizer."""

    def __init__(self, model: bytes, sha256: str) -> None:
        """Take a SentencePiece model.

        Args:
            model: the serialised model.
            sha256: the model's hash, 64 hexadecimal digits; token shards and weights record it.

        Raises:
            InputError: the model is not SentencePiece's, or its special ids or bytes are not
                those of `ernie_vilg.vocabulary`.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, UnicodeDecodeError) as error:  # or the message of one is not UTF-8
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
            InputError: a file is missing, or the model is not the one that was recorded.
        """
        for name in (MODEL_FILE, DESCRIPTION_FILE):
            if not (folder / name).is_file():
                raise InputError(
                    f"{folder} has no {name}: name a folder written by "
                    "launch/train_text_tokenizer.py"
                )
        description = read_object(folder / DESCRIPTION_FILE)
        if description.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{folder / DESCRIPTION_FILE} has format_version "
                f"{description.get('format_version')}, this code reads {FORMAT_VERSION}: train "
                "the text tokenizer again"
            )
        path = folder / MODEL_FILE
        sha256 = sha256_of_file(path)
        if sha256 != description.get("sha256"):
            raise InputError(
                f"{path} has SHA-256 {sha256} where {DESCRIPTION_FILE} records "
                f"{description.get('sha256')}: it is damaged or was replaced; copy both files again"
            )
        return cls(path.read_bytes(), sha256)

    def encode(self, text: str) -> list[int]:
        """Return the text's ids, without special ids; none for an empty text."""
        ids: list[int] = self._processor.encode(text, out_type=int)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids.

        Special ids are left out. Bytes that are no UTF-8, which a model may generate, become
        U+FFFD.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise InputError(
                f"text ids from {min(ids)} to {max(ids)}: this text tokenizer has ids from 0 to "
                f"{self.vocab_size - 1}; use the text tokenizer that the ids were made with"
            )
        pieces = [int(piece_id) for piece_id in ids if piece_id >= NUM_SPECIAL_IDS]
        text: str = self._processor.decode(pieces)
        # A space is U+2581 to SentencePiece, and comes back as such where it has no piece.
        return restore_full_width(text.replace("\u2581", " "))


def train_text_tokenizer(captions: Iterable[str], config: TrainTextTokenizerConfig) -> bytes:
    """Learn a SentencePiece model.

    The same captions and settings give the same model: SentencePiece runs on one thread, and
    it samples nothing.

    Args:
        captions: what to learn from, without line breaks. SentencePiece reserves U+2585; captions
            that hold one are counted in the log and learned from without it.
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
            hard_vocab_limit=False,  # few captions may hold fewer pieces than asked for
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
        if sentences.error is not None:  # SentencePiece keeps the message of it alone
            raise sentences.error from None
        raise InputError(
            f"vocab_size={config.vocab_size} with character_coverage="
            f"{config.character_coverage}: SentencePiece cannot learn it from these captions "
            f"({error}); set a larger vocab_size, a smaller character_coverage, or name shards "
            "with more captions"
        ) from error
    return model.getvalue()


class _Sentences:
    """Captions in a form that SentencePiece takes; it silently drops others."""

    def __init__(self, captions: Iterable[str]) -> None:
        self._captions = captions
        self.error: Exception | None = None
        """The one that ended the reading of captions."""

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
                    f"a caption has {num_bytes:,} bytes ({caption[:40]!r}...), the most that is "
                    f"learned from are {_MAX_CAPTION_BYTES:,}: shorten it"
                )
            num_reserved += _RESERVED in caption
            yield from filter(None, caption.split(_RESERVED))
        if num_reserved:
            logger.warning(
                "%d captions hold U+2585, which SentencePiece reserves: they are learned from "
                "without it, and it becomes bytes",
                num_reserved,
            )


def write_text_tokenizer(folder: Path, model: bytes, made_from: Mapping[str, Any]) -> TextTokenizer:
    """Write a trained model with its hash.

    Args:
        folder: an empty one, which the caller commits (see `committed_folder`): two files are
            written into it.
        model: the serialised model.
        made_from: settings and data that the model was learned with, recorded for people.

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


def restore_full_width(text: str) -> str:
    """Put back the full-width marks of Chinese that NFKC made ASCII.

    A mark `, ; : ? !` becomes full-width directly after a CJK character, unless a space
    follows it, as in "按键: #". An opening parenthesis does so, too, or at the start of a text
    that goes on with a CJK character; a closing one follows the one it closes. A Chinese text
    that was written with ASCII marks comes back with full-width ones: after NFKC the two are
    the same.
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
