"""Patterns of names of parameters and layers: `*` is any text, `?` one character.

A pattern is compared with the whole name.
"""

import difflib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from ernie_vilg.errors import InputError

_NUM_NEAR = 3


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of some patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_matches(key: str, pattern: str, names: Collection[str], *, what: str) -> None:
    """Check that a pattern matches something.

    Args:
        key: setting that has the pattern.
        pattern: the pattern.
        names: all names that there are.
        what: kind of thing that has these names, in the singular.

    Raises:
        InputError: it matches none; the message says which names are near.
    """
    if any(matches(name, [pattern]) for name in names):
        return
    near = difflib.get_close_matches(pattern.strip("*."), names, n=_NUM_NEAR, cutoff=0.0)
    raise InputError(
        f"{key}={pattern} matches no {what}: name some of the {len(names)} of this model, such as "
        f"{', '.join(near)}; * is any text"
    )
