"""Where a program writes, and what it may replace.

Source: ours.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import committed_folder


def check_output_folder(path: Path, *, overwrite: bool, marker: str) -> None:
    """Refuse a folder that must not be written.

    Args:
        path: the folder to write.
        overwrite: whether an earlier output there may be replaced.
        marker: a file within the folder by which an earlier output is known.

    Raises:
        InputError: `path` exists, and either `overwrite` is false or what stands there is not
            an earlier output, which a mistyped path would delete.
    """
    if not path.exists():
        return
    if not overwrite:
        raise InputError(
            f"output_dir={path} already exists: set overwrite=true to replace it, or name "
            "another folder"
        )
    if not path.is_dir() or (any(path.iterdir()) and not (path / marker).is_file()):
        raise InputError(
            f"output_dir={path} with overwrite=true: it holds no {marker}, so this program did "
            "not write it and will not delete it; name another folder"
        )


@contextmanager
def output_folder(path: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    After an error nothing is left of it.

    Raises:
        InputError: see `check_output_folder`.
    """
    check_output_folder(path, overwrite=overwrite, marker=marker)
    with committed_folder(path, replace=overwrite) as folder:
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
