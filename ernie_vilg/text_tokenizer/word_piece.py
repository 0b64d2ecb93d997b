"""WordPiece: an imported vocabulary, and text to ids and back with it.

A word (see `words`) is cut greedily: the longest piece that it begins with, then the longest piece
that its rest begins with, and so on. A piece within a word is written ##piece in the vocabulary.

BERT makes a whole word unknown where one of its characters has no piece. Here that character is
written as its UTF-8 bytes, ids 4 to 259 as in every text tokenizer of this project, and the cutting
goes on after it. So no text is unknown, a rare character comes back, a cut caption ends at a whole
character by the same rule, and words that BERT knows have BERT's pieces. A byte does not say
whether a word begins with it: where a space must stand before such a word, the space is a byte too.

Source: WordPiece as in BERT (Devlin et al. 2019, arXiv:1810.04805) and ERNIE (Sun et al. 2019,
arXiv:1904.09223); the bytes are ours, after SentencePiece's byte fallback.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import json_bytes
from ernie_vilg.storage.json_files import object_of, parse_json
from ernie_vilg.text_tokenizer.words import gap, words_of
from ernie_vilg.vocabulary import FIRST_BYTE_ID, NUM_RESERVED_IDS

FORMAT_VERSION = 1
CONTINUATION = "##"
"""First characters of a piece that continues a word."""
_SPACE_ID = FIRST_BYTE_ID + ord(" ")


class WordPieceModel:
    """Imported WordPiece vocabulary with byte fallback."""

    def __init__(self, model: bytes) -> None:
        """Take a model from `word_piece_model`.

        Raises:
            InputError: it is none.
        """
        content = object_of(parse_json(model, "the text tokenizer's model"), "its content")
        pieces = _checked_pieces(content)
        self.lower_case: bool = content["lower_case"]
        """Whether letters become lower case."""
        self.strip_accents: bool = content["strip_accents"]
        """Whether accents are removed."""
        self.vocab_size = NUM_RESERVED_IDS + len(pieces)
        """Number of ids, special ones and bytes included."""
        self._pieces = pieces
        self._first: dict[str, int] = {}
        self._further: dict[str, int] = {}
        for piece_id, piece in enumerate(pieces, NUM_RESERVED_IDS):
            is_further = _is_further(piece)
            table = self._further if is_further else self._first
            table[piece[len(CONTINUATION) :] if is_further else piece] = piece_id
        self._longest = max(map(len, (*self._first, *self._further)))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special ids."""
        ids: list[int] = []
        before = ""
        for word in self._words(text):
            ids += self._ids_of(word, before)
            before = word[-1]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, none of them special."""
        text = ""
        for part, is_word in self._parts(ids):
            text += (gap(text[-1:], part[0]) if is_word else "") + part
        # Removing accents has decomposed Hangul; this composes it.
        return (unicodedata.normalize("NFC", text) if self.strip_accents else text).strip()

    def comparable(self, text: str) -> str:
        """Return the words of a text without spaces."""
        joined = "".join(self._words(text))
        return unicodedata.normalize("NFC", joined) if self.strip_accents else joined

    def _words(self, text: str) -> list[str]:
        return words_of(text, lower_case=self.lower_case, strip_accents=self.strip_accents)

    def _ids_of(self, word: str, before: str) -> Iterator[int]:
        """Yield the ids of a word after the last character of another one."""
        start, table = 0, self._first
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                if (piece_id := table.get(word[start:end])) is not None:
                    yield piece_id
                    break
            else:
                end = start + 1
                if start == 0 and gap(before, word[0]):
                    yield _SPACE_ID
                for byte in word[start].encode("utf-8", "replace"):
                    yield FIRST_BYTE_ID + byte
            start, table = end, self._further

    def _parts(self, ids: Sequence[int]) -> Iterator[tuple[str, bool]]:
        """Yield the texts of pieces and of runs of bytes, and whether each begins a word."""
        run = bytearray()
        for text_id in ids:
            if text_id < NUM_RESERVED_IDS:
                run.append(text_id - FIRST_BYTE_ID)
                continue
            if run:
                yield run.decode("utf-8", "replace"), False
                run.clear()
            piece = self._pieces[text_id - NUM_RESERVED_IDS]
            is_further = _is_further(piece)
            yield piece[len(CONTINUATION) :] if is_further else piece, not is_further
        if run:
            yield run.decode("utf-8", "replace"), False


def word_piece_model(pieces: Sequence[str], *, lower_case: bool, strip_accents: bool) -> bytes:
    """Return the content of the file of a WordPiece model.

    Args:
        pieces: pieces without special ones, all different; ids follow their order.
        lower_case: whether letters become lower case.
        strip_accents: whether accents are removed.
    """
    return json_bytes(
        {
            "format_version": FORMAT_VERSION,
            "lower_case": lower_case,
            "strip_accents": strip_accents,
            "pieces": list(pieces),
        }
    )


def _is_further(piece: str) -> bool:
    # "##" alone is a piece of its own, of a vocabulary that has it.
    return piece.startswith(CONTINUATION) and piece != CONTINUATION


def _checked_pieces(content: dict[str, Any]) -> list[str]:
    """Return the pieces of a model's content."""
    pieces = content.get("pieces")
    is_sound = (
        content.get("format_version") == FORMAT_VERSION
        and all(isinstance(content.get(name), bool) for name in ("lower_case", "strip_accents"))
        and isinstance(pieces, list)
        and pieces
        and all(isinstance(piece, str) and piece for piece in pieces)
        and len(set(pieces)) == len(pieces)
    )
    if not is_sound:
        raise InputError(
            "the text tokenizer's model is not a WordPiece model of format_version "
            f"{FORMAT_VERSION}, with lower_case, strip_accents and different pieces: import the "
            "vocabulary again with launch/import_text_tokenizer.py"
        )
    return list(content["pieces"])
