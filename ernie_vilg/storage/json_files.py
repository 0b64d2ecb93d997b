"""Reader of untrusted JSON: bounded in size, depth and type, or refused.

All JSON files of the project are read here, so that a damaged one always ends in an `InputError`
that names the file. Python's own reader fails in other ways: a `RecursionError` for deep values, an
endless wait for a pipe, a text that cannot be encoded again for half an escaped surrogate pair.

Source: ours, on RFC 8259.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from ernie_vilg.errors import InputError

MOST_BYTES = 64 << 20
"""Default limit of one JSON text; a manifest of 800 million samples has 20 MB."""
MOST_DEPTH = 64
"""Most nested brackets; our own files have 8."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(path: Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: a regular file, or a link to one.
        most_bytes: a longer file is refused unread.

    Raises:
        InputError: it is no regular file, too long, not UTF-8, not JSON, or too deep; the message
            names it.
        OSError: it cannot be opened or read.
    """
    return parse_json(read_bounded(path, most_bytes=most_bytes), str(path))


def read_object(path: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InputError: as `read_json`, or it holds another kind of value.
        OSError: it cannot be opened or read.
    """
    return object_of(read_json(path, most_bytes=most_bytes), str(path))


def parse_json(text: bytes | str, name: str, *, is_finite: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: a text, or its UTF-8 bytes; a byte order mark is skipped.
        name: source of the text, for the message: a file, a line of one, a URL.
        is_finite: whether to refuse NaN, Infinity and numbers that overflow to it. Metrics may
            hold them.

    Raises:
        InputError: it is not JSON, or too deep.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    content = content.removeprefix(_BYTE_ORDER_MARK)
    try:
        value = json.loads(
            content.decode(),
            parse_constant=_refuse_constant if is_finite else None,
            parse_float=_finite if is_finite else None,
        )
        _check_depth(value)
        if b"\\u" in content:  # half an escaped surrogate pair could not be written again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # errors of Unicode and JSON are ValueErrors
        raise InputError(
            f"{name} is not valid JSON ({_reason(error)}): restore it or write it again with the "
            "program that made it"
        ) from error
    return value


def object_of(value: Any, name: str) -> dict[str, Any]:
    """Return a JSON value that must be an object.

    Raises:
        InputError: it is another kind of value.
    """
    if not isinstance(value, dict):
        raise InputError(
            f"{name} holds {kind_of(value)} where an object belongs: restore it or write it again "
            "with the program that made it"
        )
    return value


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value, with its article."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]


def read_bounded(path: Path, *, most_bytes: int) -> bytes:
    """Return the content of a regular file of limited size.

    Raises:
        InputError: it is a folder, a pipe, a device or a socket, or longer.
        OSError: it cannot be opened or read.
    """
    with open_regular(path) as file:
        is_long = os.fstat(file.fileno()).st_size > most_bytes
        content = b"" if is_long else file.read(most_bytes + 1)
    if is_long or len(content) > most_bytes:
        raise InputError(
            f"{path} has more than {most_bytes:,} bytes, the most that is read: it is not what "
            "this program wrote; restore it"
        )
    return content


def open_regular(path: Path, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: the file, or a link to it.
        buffering: as for `open`.

    Raises:
        InputError: it is a folder, a pipe, a device or a socket.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no regular file: remove what stands there")
    return os.fdopen(descriptor, "rb", buffering)


def _check_depth(value: Any) -> None:
    """Refuse deep values: writing them can overflow the stack even where reading did not."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        containers = [part for part in level if isinstance(part, dict | list)]
        if not containers:
            return
        level = [
            child
            for part in containers
            for child in (part.values() if isinstance(part, dict) else part)
            if isinstance(child, dict | list)
        ]
    raise ValueError(f"more than {MOST_DEPTH} nested brackets")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is beyond the largest number")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"more than {MOST_DEPTH} nested brackets"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair is escaped in it"
    return str(error).partition(";")[0]  # Python's hint for long numbers is cut
