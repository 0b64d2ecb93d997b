"""The text tokenizer: a frozen model, text to ids and back, and the hash that identifies it.

Two kinds of models have one interface: SentencePiece, which is trained here, and WordPiece, whose
vocabulary is imported. In both, ids 0 to 3 are special and ids 4 to 259 are the bytes of characters
without a piece, so every text has ids and none is unknown. No text gives special ids, except that
`QUESTION_END`, which no caption has, becomes BEGIN_OF_TEXT_ID.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes, write_json
from ernie_vilg.storage.json_files import MOST_BYTES, read_bounded
from ernie_vilg.text_tokenizer.card import card_text
from ernie_vilg.text_tokenizer.folder import (
    CARD_FILE,
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    MODEL_FILES,
    Kind,
    read_description,
)
from ernie_vilg.text_tokenizer.sentence_piece import SentencePieceModel
from ernie_vilg.text_tokenizer.word_piece import WordPieceModel
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    NUM_SPECIAL_IDS,
    QUESTION_END,
    SPECIAL_IDS,
)


class _Model(Protocol):
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def comparable(self, text: str) -> str: ...


class TextTokenizer:
    """Trained or imported text tokenizer."""

    def __init__(self, model: bytes, sha256: str, kind: Kind = "sentencepiece") -> None:
        """Take a model.

        Args:
            model: the content of the model's file.
            sha256: hash of the model, 64 hexadecimal digits; token shards and weights record it.
            kind: kind of the model.

        Raises:
            InputError: it is no model of this kind, or its special ids or bytes differ from those
                of `ernie_vilg.vocabulary`.
        """
        self.kind: Kind = kind
        """Kind of the model."""
        self.sha256 = sha256
        self._model: _Model = (
            SentencePieceModel(model) if kind == "sentencepiece" else WordPieceModel(model)
        )
        self.vocab_size: int = self._model.vocab_size
        """Number of ids, special ones included."""

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Read the folder of a text tokenizer.

        Raises:
            InputError: a file is missing, the folder has models of both kinds, or the model differs
                from its recorded hash.
        """
        kind, description = read_description(folder)
        path = folder / MODEL_FILES[kind]
        content = read_bounded(path, most_bytes=MOST_BYTES)
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != description.get("sha256"):
            raise InputError(
                f"{path} has SHA-256 {sha256} where {DESCRIPTION_FILE} records "
                f"{description.get('sha256')}: it is damaged or was replaced; copy both files again"
            )
        return cls(content, sha256, kind)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special ids.

        A question and its answer, with QUESTION_END between them, have BEGIN_OF_TEXT_ID there.
        """
        question, end, answer = text.partition(QUESTION_END)
        ids = self._model.encode(question)
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
        return self._model.decode([int(text_id) for text_id in ids if text_id >= NUM_SPECIAL_IDS])

    def comparable(self, text: str) -> str:
        """Return what a text has in common with the decoded text of its ids.

        Forms that the tokenizer makes one are equal in it: full width and half width for
        SentencePiece; upper and lower case, accents and spaces for WordPiece, as it is set.
        """
        return self._model.comparable(text)


def write_text_tokenizer(
    folder: Path,
    model: bytes,
    made_from: Mapping[str, Any],
    *,
    figures: Mapping[str, Any] | None = None,
    kind: Kind = "sentencepiece",
) -> TextTokenizer:
    """Write a model with its hash and its card.

    Args:
        folder: empty folder for the files, which the caller commits (see `committed_folder`).
        model: the content of the model's file.
        made_from: settings and data of the training or import, recorded for people.
        figures: what `measure_text_tokenizer` found; None if nothing was measured.
        kind: kind of the model.

    Returns:
        the text tokenizer, loaded from what was written.
    """
    path = folder / MODEL_FILES[kind]
    write_bytes(path, model)
    sha256 = hashlib.sha256(model).hexdigest()
    description = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "sha256": sha256,
        "vocab_size": TextTokenizer(model, sha256, kind).vocab_size,
        "special_ids": SPECIAL_IDS,
        "made_from": dict(made_from),
        "figures": dict(figures or {}),
    }
    write_json(folder / DESCRIPTION_FILE, description)
    write_bytes(folder / CARD_FILE, card_text(description).encode())
    return TextTokenizer.load(folder)
