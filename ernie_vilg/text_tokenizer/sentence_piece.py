"""SentencePiece: pieces learned from captions, and text to ids and back with them.

NFKC normalises text, so full-width and half-width forms share their pieces. A character without a
piece becomes its UTF-8 bytes, so every text has ids and none is unknown. Text never gives special
ids: a caption that contains "</s>" gets the pieces of those four characters.

NFKC also turns the full-width comma of Chinese into an ASCII one. `decode` restores full-width
marks where Chinese typography has them (see `restore_full_width`), so that captions come back as
they were written.

Source: SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226); the restoring of full-width
marks is ours.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import sentencepiece

from ernie_vilg.errors import InputError
from ernie_vilg.vocabulary import FIRST_BYTE_ID, NUM_BYTES, SPECIAL_IDS

_FULL_WIDTH = {",": "，", ";": "；", ":": "：", "?": "？", "!": "！"}
# CJK punctuation, kana, Chinese characters, full-width forms, Chinese characters beyond the
# basic plane. Not Hangul: Korean is written with ASCII marks.
_CJK = re.compile(
    "[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)


class SentencePieceModel:
    """Trained SentencePiece model with byte fallback."""

    def __init__(self, model: bytes) -> None:
        """Take the serialised model.

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
        self.vocab_size: int = self._processor.vocab_size()
        """Number of ids, special ones included."""
        _check_ids(self._processor)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special ids."""
        ids: list[int] = self._processor.encode(text, out_type=int)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, none of them special."""
        text: str = self._processor.decode(list(ids))
        # SentencePiece encodes a space as U+2581, and returns U+2581 if the space has no piece.
        return restore_full_width(text.replace("\u2581", " "))

    def comparable(self, text: str) -> str:
        """Return a text in NFKC and with single spaces."""
        return in_nfkc(text)


def in_nfkc(text: str) -> str:
    """Return a text in the form that SentencePiece keeps, which folds full-width letters.

    Without it no model could write a caption of full-width letters exactly.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


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
