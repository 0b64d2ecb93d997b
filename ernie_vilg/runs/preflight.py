"""Tries whether a run folder can be written, before a run starts anything."""

import os
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import fsync_folder, scratch_folder


def check_run_folder(run_dir: Path) -> None:
    """Make a run's folder, and try in it and its subfolders each operation that a checkpoint needs.

    These are: make a folder and a file, flush both to the device, and rename.

    Raises:
        InputError: an operation fails; the message names the folder and the reason.
    """
    folder = run_dir
    try:
        Path(os.path.realpath(run_dir)).mkdir(parents=True, exist_ok=True)  # a link's target
        # Names with a dot are temporary: another start's probe, for example.
        subfolders = sorted(
            path for path in run_dir.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        for folder in (run_dir, *subfolders):
            _try_to_write(folder)
    except OSError as error:
        raise InputError(
            f"run_dir={run_dir} cannot be written: {error.strerror} ({folder}). Give this user "
            "the right to write there, mount it for writing, free some disk space, or name another "
            "run_dir"
        ) from error


def _try_to_write(folder: Path) -> None:
    with scratch_folder(folder, "preflight") as scratch:
        file, probe = scratch / "file", scratch / "probe"
        with file.open("wb") as opened:
            opened.write(b"?")
            opened.flush()
            os.fsync(opened.fileno())
        file.unlink()
        probe.mkdir()
        probe.rename(scratch / "renamed")
        fsync_folder(folder)
