"""Targets of the fuzzer around imported text tokenizers: vocabularies, and their folders."""

import hashlib
import random
import tempfile
from pathlib import Path

from ernie_vilg.storage.json_files import parse_json
from ernie_vilg.text_tokenizer import (
    DESCRIPTION_FILE,
    WORD_PIECE_FILE,
    TextTokenizer,
    write_text_tokenizer,
)
from ernie_vilg.text_tokenizer.vocabulary_file import read_vocabulary
from ernie_vilg.text_tokenizer.word_piece import word_piece_model
from tests.fuzz.mutate_bytes import mutate_bytes, mutate_json, write_json
from tests.fuzz.target import Files, Outcome, Target, require

_PIECES = ["红", "的", "，", "red", "##s", "circle", "a", "##b", "[unused1]"]
_TEXT = "红色的 circles，Café 😀 龘 (a)"


def _vocabulary() -> dict[str, bytes]:
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_PIECES]
    numbered = [f"{line}\t{number}" for number, line in enumerate(lines)]
    return {"vocab.txt": "\n".join(lines).encode(), "numbered.txt": "\n".join(numbered).encode()}


def _folder() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        model = word_piece_model(_PIECES, lower_case=True, strip_accents=True)
        write_text_tokenizer(Path(name), model, {}, kind="wordpiece")
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def _require_sound(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(_TEXT)
    require(all(4 <= text_id < tokenizer.vocab_size for text_id in ids), f"ids {ids}")
    for text in (tokenizer.decode(ids), tokenizer.decode(range(tokenizer.vocab_size))):
        text.encode()


def _read_vocabulary(folder: Path, files: Files) -> Outcome:
    for name in sorted(files):
        vocabulary = read_vocabulary(folder / name)
        model = word_piece_model(vocabulary.pieces, lower_case=True, strip_accents=True)
        _require_sound(TextTokenizer(model, "", "wordpiece"))
    return Outcome.VALID


def _read_folder(folder: Path, files: Files) -> Outcome:
    _require_sound(TextTokenizer.load(folder))
    return Outcome.VALID


def _repair(rng: random.Random, files: Files) -> Files:
    """Put the hash of a damaged model right, three times of four."""
    model, described = files[WORD_PIECE_FILE], files[DESCRIPTION_FILE]
    intact = described == FOLDER.originals[DESCRIPTION_FILE]
    if rng.random() < 0.25 or not intact or not isinstance(model, bytes):
        return files
    assert isinstance(described, bytes)
    content = {**parse_json(described, ""), "sha256": hashlib.sha256(model).hexdigest()}
    return {**files, DESCRIPTION_FILE: write_json(content)}


FOLDER = Target(
    name="imported text tokenizers",
    files=_folder,
    read=_read_folder,
    repair=_repair,
    mutate={".json": mutate_json},
)
TARGETS = [
    Target(
        name="vocabularies",
        files=_vocabulary,
        read=_read_vocabulary,
        mutate={".txt": mutate_bytes},
    ),
    FOLDER,
]
