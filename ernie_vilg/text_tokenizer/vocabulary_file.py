"""Import of a WordPiece vocabulary: the `vocab.txt` of BERT or ERNIE.

The file has an entry per line, and ids follow the lines; older files of ERNIE have the number
behind a tab. The entries [PAD], [UNK], [CLS], [SEP] and [MASK] become this project's special ids or
nothing; the others are the pieces, whose ids follow their order from id 260.

Source: the layout of BERT's files (Devlin et al. 2019, arXiv:1810.04805).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import MOST_BYTES, read_bounded

UNKNOWN = "[UNK]"
SPECIAL_ENTRIES = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
"""Entries that are no pieces. [PAD], [UNK], [CLS] and [SEP] are ids 0 to 3; [MASK] has no use."""
_MOST_REPEATED = 0.01
"""Largest fraction of repeated lines. A file of ERNIE 1.0 has one: $, in lines 12085 and 18006."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Entries of a vocabulary file."""

    pieces: tuple[str, ...]
    """Entries in their order, without special ones, each once."""
    special: tuple[str, ...]
    """Special entries that the file has, in its order."""

    @property
    def num_unused(self) -> int:
        """Number of pieces such as [unused7], which no text contains as one word."""
        return sum(piece.startswith("[unused") for piece in self.pieces)


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary file.

    Raises:
        InputError: it is missing, is not UTF-8, has an empty line, a wrong number behind a tab,
            more than one in a hundred entries twice, no [UNK], or no other piece.
    """
    entries = _entries_of(path)
    lines: dict[str, int] = {}
    for line, entry in enumerate(entries, 1):
        if not entry:
            raise InputError(
                f"line {line} of {path} is empty, and each line of a vocabulary is an entry: "
                "restore the file, or get it again"
            )
        lines.pop(entry, None)  # the last line counts, as in BERT's and ERNIE's programs
        lines[entry] = line
    _check_repeated(entries, lines, path)
    if UNKNOWN not in lines:
        raise InputError(
            f"{path} has no line {UNKNOWN}, so it is no WordPiece vocabulary: name the vocab.txt "
            "of a BERT or ERNIE model"
        )
    pieces = tuple(entry for entry in lines if entry not in SPECIAL_ENTRIES)
    if not pieces:
        raise InputError(f"{path} has no pieces besides special entries: restore the file")
    special = tuple(entry for entry in lines if entry in SPECIAL_ENTRIES)
    return Vocabulary(pieces=pieces, special=special)


def _check_repeated(entries: Sequence[str], lines: Mapping[str, int], path: Path) -> None:
    """Log how many entries stand twice; refuse more than slips of the file's makers."""
    num_repeated = len(entries) - len(lines)
    if not num_repeated:
        return
    line, entry = next(
        (line, entry) for line, entry in enumerate(entries, 1) if lines[entry] != line
    )
    found = (
        f"{num_repeated} of {len(entries)} lines of {path} repeat an entry, such as {entry!r:.80}"
    )
    where = f"in lines {line} and {lines[entry]}"
    if num_repeated > _MOST_REPEATED * len(entries):
        raise InputError(f"{found} {where}, and entries must differ: restore the file")
    logger.warning("%s %s: of each, the last line counts", found, where)


def _entries_of(path: Path) -> list[str]:
    """Return the entries of all lines, without numbers."""
    try:
        content = read_bounded(path, most_bytes=MOST_BYTES)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"vocabulary={path} does not exist: name a vocab.txt") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"line {line} of {path} is not UTF-8: name the vocab.txt itself, unpacked, and convert "
            "it to UTF-8 if it has another encoding"
        ) from error
    # Not splitlines: other line separators of Unicode may be entries.
    lines = text.removesuffix("\n").split("\n") if text else []
    lines = [line.removesuffix("\r") for line in lines]
    return _without_numbers(lines, path) if lines and "\t" in lines[0] else lines


def _without_numbers(lines: Sequence[str], path: Path) -> list[str]:
    entries = []
    for number, line in enumerate(lines):
        entry, _, found = line.rpartition("\t")
        if found != str(number):
            raise InputError(
                f"line {number + 1} of {path} ends with {found!r:.40} where the number {number} "
                "belongs behind a tab, as the first line has one: restore the file"
            )
        entries.append(entry)
    return entries
