"""Checks of the places that a program writes, made before its long work.

A place is used with its links followed: a link to a scratch disk stays a link, and what is written
is stored on that disk.

Source: ours.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import committed_folder, is_taken
from ernie_vilg.storage.locations import check_apart

_TEMPORARY_BYTES = 40
"""Length that the names of temporary files add to that of the place they become."""


def check_output(
    setting: str,
    value: str | Path,
    inputs: Mapping[str, str | None] | None = None,
    *,
    is_filled: bool = False,
) -> Path:
    """Return the place that a setting names, without links, if it can be written.

    Args:
        setting: its name.
        value: a file or folder to write; it need not exist.
        inputs: places that are read, by their settings; the output must not lie within one.
        is_filled: whether files are written into it, rather than the whole beside it and renamed.

    Raises:
        InputError: it lies within an input, its name is too long, a file stands where a folder
            must be, or this user cannot write beside it.
    """
    place = Path(os.path.realpath(value))
    for name, other in (inputs or {}).items():
        check_apart(setting, str(value), name, other)
    reason = _why_not(place / "file" if is_filled else place)
    if reason:
        raise InputError(
            f"{setting}={value} cannot be written: {reason}; mend this, or name another place"
        )
    return place


def check_output_file(
    setting: str, value: str | Path, inputs: Mapping[str, str | None] | None = None
) -> Path:
    """Return the file that a setting names, without links, if it can be written.

    Raises:
        InputError: as `check_output`; or it is a folder.
    """
    place = check_output(setting, value, inputs)
    if place.is_dir():
        raise InputError(f"{setting}={value} is a folder: name a file in it")
    return place


def check_output_folder(
    value: str | Path,
    *,
    overwrite: bool,
    marker: str,
    inputs: Mapping[str, str | None] | None = None,
) -> Path:
    """Return the folder that `output_dir` names, without links, if it can be written whole.

    Args:
        value: the folder to write.
        overwrite: whether an earlier output there may be replaced.
        marker: a file within the folder by which an earlier output is known.
        inputs: places that are read, by their settings; none may lie within the output.

    Raises:
        InputError: as `check_output`; or something stands there, and either `overwrite` is false
            or it is not an earlier output, which a mistyped path would delete.
    """
    place = check_output("output_dir", value, inputs)
    for name, other in (inputs or {}).items():
        check_apart(name, other, "output_dir", str(value))
    if os.path.ismount(place):
        raise InputError(
            f"output_dir={value}: a disk is mounted there, and a finished folder is renamed to its "
            "name, which a mount refuses; name a folder within it"
        )
    if not is_taken(place):
        return place
    if not overwrite:
        raise InputError(
            f"output_dir={value} already exists: set overwrite=true to replace it, or name "
            "another folder"
        )
    if not (place / marker).is_file():
        raise InputError(
            f"output_dir={value} with overwrite=true: it holds no {marker}, so this program did "
            "not write it and will not delete it; name another folder"
        )
    return place


@contextmanager
def output_folder(
    value: str | Path,
    *,
    overwrite: bool,
    marker: str,
    inputs: Mapping[str, str | None] | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder that becomes `output_dir` when the block ends without an error.

    After an error nothing is left of it.

    Raises:
        InputError: as `check_output_folder`; or another process is writing the folder.
    """
    place = check_output_folder(value, overwrite=overwrite, marker=marker, inputs=inputs)
    with committed_folder(place, replace=overwrite) as folder:
        yield folder


def _why_not(place: Path) -> str:
    """Say why nothing can be written beside a place, "" where it can."""
    try:
        os.lstat(f"{place}{'x' * _TEMPORARY_BYTES}")
    except FileNotFoundError:
        pass
    except OSError as error:
        return str(error.strerror)
    folder = place.parent
    while not folder.exists():
        folder = folder.parent
    if os.access(folder, os.W_OK | os.X_OK):
        return ""
    is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    return f"{folder} is {'mounted read-only' if is_read_only else 'not writable for this user'}"
