"""Checks of output files and folders, made before a program's long work.

Links are followed: a link to a scratch disk stays a link, and the output is stored on that disk.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import committed_folder, is_taken
from ernie_vilg.storage.locations import check_apart

_TEMPORARY_BYTES = 40
"""Characters that the name of a temporary file adds to the name of the output."""


def check_output(
    setting: str,
    value: str | Path,
    inputs: Mapping[str, str | None] | None = None,
    *,
    is_filled: bool = False,
) -> Path:
    """Return the output path of a setting, with links resolved, if it can be written.

    Args:
        setting: name of the setting.
        value: a file or folder to write; it need not exist.
        inputs: paths that are read, by their settings; the output must not lie within one.
        is_filled: true if files are written into the folder itself, false if the output is written
            beside it and renamed.

    Raises:
        InputError: it lies within an input, its name is too long, one of its parent folders is a
            file, or this user cannot write there.
    """
    path = Path(os.path.realpath(value))
    for name, other in (inputs or {}).items():
        check_apart(setting, str(value), name, other)
    reason = _why_not(path / "file" if is_filled else path)
    if reason:
        raise InputError(
            f"{setting}={value} cannot be written: {reason}; fix this, or name another path"
        )
    return path


def check_output_file(
    setting: str, value: str | Path, inputs: Mapping[str, str | None] | None = None
) -> Path:
    """Return the output file of a setting, with links resolved, if it can be written.

    Raises:
        InputError: as for `check_output`; or it is a folder.
    """
    path = check_output(setting, value, inputs)
    if path.is_dir():
        raise InputError(f"{setting}={value} is a folder: name a file in it")
    return path


def check_output_folder(
    value: str | Path,
    *,
    overwrite: bool,
    marker: str,
    inputs: Mapping[str, str | None] | None = None,
) -> Path:
    """Return the folder of `output_dir`, with links resolved, if it can be written whole.

    Args:
        value: the folder to write.
        overwrite: true if an earlier output there may be replaced.
        marker: file within the folder that identifies an earlier output.
        inputs: paths that are read, by their settings; none may lie within the output.

    Raises:
        InputError: as for `check_output`; or the path exists, and either `overwrite` is false or it
            is not an earlier output, so that a mistyped path deletes nothing.
    """
    path = check_output("output_dir", value, inputs)
    for name, other in (inputs or {}).items():
        check_apart(name, other, "output_dir", str(value))
    if os.path.ismount(path):
        raise InputError(
            f"output_dir={value}: a disk is mounted there, and a mount point cannot be replaced by "
            "the finished folder; name a folder within it"
        )
    if not is_taken(path):
        return path
    if not overwrite:
        raise InputError(
            f"output_dir={value} already exists: set overwrite=true to replace it, or name "
            "another folder"
        )
    if not (path / marker).is_file():
        raise InputError(
            f"output_dir={value} with overwrite=true: it holds no {marker}, so this program did "
            "not write it and will not delete it; name another folder"
        )
    return path


@contextmanager
def output_folder(
    value: str | Path,
    *,
    overwrite: bool,
    marker: str,
    inputs: Mapping[str, str | None] | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder that becomes `output_dir` when the block ends without an error.

    An error removes it.

    Raises:
        InputError: as for `check_output_folder`; or another process is writing the folder.
    """
    path = check_output_folder(value, overwrite=overwrite, marker=marker, inputs=inputs)
    with committed_folder(path, replace=overwrite) as folder:
        yield folder


def _why_not(path: Path) -> str:
    """Return the reason why a path cannot be written, "" if it can."""
    try:
        os.lstat(f"{path}{'x' * _TEMPORARY_BYTES}")
    except FileNotFoundError:
        pass
    except OSError as error:
        return str(error.strerror)
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if os.access(folder, os.W_OK | os.X_OK):
        return ""
    is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    return f"{folder} is {'mounted read-only' if is_read_only else 'not writable for this user'}"
