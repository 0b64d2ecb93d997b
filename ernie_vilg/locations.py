"""What the name of a place for data means: a local folder, or a URL in one of three schemes.

A location is a local folder or begins with s3://, gs:// or https://. Anything else that looks like
a URL is refused: no shell is ever asked (WebDataset's `pipe:`), and nothing comes unencrypted.

Source: ours.
"""

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from ernie_vilg.errors import InputError

REMOTE_SCHEMES = ("s3", "gs", "https")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


def is_remote(location: str) -> bool:
    """Return whether a location is a URL that can be read, rather than a local folder.

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
        # What follows is not shown: in a command it may hold a password.
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


def shown(location: str) -> str:
    """Return a location as it may be shown: a URL without user, password and query."""
    if _SCHEME.match(location) is None:
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
