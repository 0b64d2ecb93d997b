"""The folder of a text tokenizer: its files, and what it records about itself.

A trained tokenizer's model is `text_tokenizer.model`, SentencePiece's own format; an imported
WordPiece vocabulary is `text_tokenizer.wordpiece.json`. `text_tokenizer.json` holds the hash of the
model, the number of ids and the card, and `README.md` the card for people.
"""

from pathlib import Path
from typing import Any, Literal

from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS

Kind = Literal["sentencepiece", "wordpiece"]

MODEL_FILE = "text_tokenizer.model"
WORD_PIECE_FILE = "text_tokenizer.wordpiece.json"
DESCRIPTION_FILE = "text_tokenizer.json"
CARD_FILE = "README.md"
FORMAT_VERSION = 1

MODEL_FILES: dict[Kind, str] = {"sentencepiece": MODEL_FILE, "wordpiece": WORD_PIECE_FILE}


def read_description(folder: Path) -> tuple[Kind, dict[str, Any]]:
    """Return the kind of a text tokenizer, and what its folder records.

    Raises:
        InputError: a file is missing or has another format, or the folder has models of both kinds.
    """
    kind = _kind_of(folder)
    if not (folder / DESCRIPTION_FILE).is_file():
        raise _no_file(folder, DESCRIPTION_FILE)
    description = read_object(folder / DESCRIPTION_FILE)
    if description.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder / DESCRIPTION_FILE} has format_version "
            f"{description.get('format_version')}, this code reads {FORMAT_VERSION}: train or "
            "import the text tokenizer again"
        )
    recorded = description.get("kind", "sentencepiece")  # folders without it are of that kind
    if recorded != kind:
        raise InputError(
            f"{folder} has a {MODEL_FILES[kind]} where {DESCRIPTION_FILE} records the kind "
            f"{recorded!r:.40}: copy the whole folder again"
        )
    return kind, description


def read_vocab_size(folder: Path) -> int:
    """Return the number of ids that a text tokenizer's folder records, without loading the model.

    Raises:
        InputError: as for `read_description`; or it records no number of ids.
    """
    _, description = read_description(folder)
    found = description.get("vocab_size")
    if not isinstance(found, int) or isinstance(found, bool) or found <= NUM_SPECIAL_IDS:
        raise InputError(
            f"{folder / DESCRIPTION_FILE} has vocab_size {found!r} where a number of ids above "
            f"{NUM_SPECIAL_IDS} belongs: copy the whole folder again"
        )
    return found


def _kind_of(folder: Path) -> Kind:
    found = [kind for kind, name in MODEL_FILES.items() if (folder / name).is_file()]
    if not found:
        raise _no_file(folder, MODEL_FILE)
    if len(found) > 1:
        raise InputError(
            f"{folder} has both {' and '.join(MODEL_FILES.values())}, and a text tokenizer is one "
            "of them: copy the folder of the one that is meant again"
        )
    return found[0]


def _no_file(folder: Path, name: str) -> InputError:
    return InputError(
        f"{folder} has no {name}: name a folder written by launch/train_text_tokenizer.py or "
        f"launch/import_text_tokenizer.py (which has {WORD_PIECE_FILE} for its model)"
    )
