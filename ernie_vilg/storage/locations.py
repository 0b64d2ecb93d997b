"""Locations of data: local folders and URLs.

A location is a local folder or begins with s3://, gs:// or https://. Anything else that looks like
a URL is refused: no shell command is run (WebDataset's `pipe:`), and nothing is read unencrypted.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from ernie_vilg.errors import InputError

REMOTE_SCHEMES = ("s3", "gs", "https")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Characters that Python substitutes for bytes of a name that are not UTF-8."""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


def is_remote(location: str) -> bool:
    """Return whether a location is a URL that can be read, not a local folder.

    Raises:
        InputError: it is a URL or command of another kind, or has "..", a control character or,
            for s3 and gs, a query.
    """
    if _CONTROL_CHARACTER.search(location):
        raise InputError("a location has a control character: name a folder or a URL without")
    match = _SCHEME.match(location)
    if match is None:
        return False
    scheme, rest = match[1], location[match.end() :]
    if scheme not in REMOTE_SCHEMES or not re.match(r"//[^/]", rest):
        # The rest is not shown: a command may hold a password.
        raise InputError(
            f"a location that begins with {scheme}: is not read: name a local folder (./{scheme}:"
            "... if that is its name), or a URL that begins with "
            f"{', '.join(f'{known}://' for known in REMOTE_SCHEMES)}"
        )
    if ".." in re.split(r"[/\\]", unquote(urlsplit(location).path)):
        raise InputError(f"{shown(location)} has '..' in its path: name the folder directly")
    if "#" in rest or ("?" in rest and scheme != "https"):
        raise InputError(f"{shown(location)} is followed by '?' or '#': name a folder only")
    return True


def check_local(name: str, place: str, *, is_written: bool) -> None:
    """Refuse a setting's place that is not local.

    Args:
        name: name of the setting.
        place: its value.
        is_written: whether a program writes there; then it must not be empty.

    Raises:
        InputError: the place is a URL, a command such as `pipe:`, not UTF-8, or has a control
            character, or it is written and empty.
    """
    if is_written and not place:
        raise InputError(f"{name} is empty: name a place to write to")
    if _SURROGATE.search(place):
        raise InputError(f"{name} is not UTF-8: rename it, or reach it by a link that is")
    if _CONTROL_CHARACTER.search(place):
        raise InputError(f"{name} has a control character: name a place without")
    if match := _SCHEME.match(place):
        # The rest is not shown: it may hold a password.
        raise InputError(
            f"{name}={match[1]}:...: must be a file or folder of this machine, not a URL or a "
            "command: name a local one, such as a mounted bucket or a copy "
            f"(./{match[1]}:... if that is its name)"
        )


def missing_folders(places: Mapping[str, str]) -> dict[str, str]:
    """Return the settings whose places are not folders, with these places."""
    return {name: place for name, place in places.items() if not place or not Path(place).is_dir()}


def check_folders(places: Mapping[str, str]) -> None:
    """Refuse settings whose places are not folders.

    Raises:
        InputError: a place is not a folder.
    """
    for name, place in missing_folders(places).items():
        raise InputError(
            f"{name}={place} is not a folder: run the program that writes it first, or name another"
        )


def check_apart(setting: str, place: str | None, other_setting: str, other: str | None) -> None:
    """Refuse a place that is another one or lies within it, links followed.

    Raises:
        InputError: it is or does.
    """
    if not place or not other or is_remote(place) or is_remote(other):
        return
    inner, outer = (Path(os.path.realpath(path)) for path in (place, other))
    if inner.is_relative_to(outer):
        raise InputError(
            f"{setting}={place} lies within {other_setting}={other}: name places apart from each "
            "other, what is read must not change"
        )


def shown(location: str) -> str:
    """Return a location for messages: a URL without user, password and query."""
    if _SCHEME.match(location) is None:
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def recorded_location(location: str) -> str:
    """Return a location in the form that a run records.

    A local folder becomes an absolute path, which holds in every working folder; a URL loses user,
    password and query, which may be secrets.
    """
    return shown(location) if is_remote(location) else str(Path(location).resolve())
