"""Whether a run folder can take what a run will write, tried before anything is started.

Source: ours.
"""

import os
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import fsync_folder, scratch_folder


def check_run_folder(run_dir: Path) -> None:
    """Make a run's folder, and try in it and its subfolders all that a checkpoint needs.

    That is: to make a folder and a file, to flush both to the device, and to rename.

    Raises:
        InputError: something is refused; the message names the folder and the reason.
    """
    folder = run_dir
    try:
        Path(os.path.realpath(run_dir)).mkdir(parents=True, exist_ok=True)  # where a link leads
        # Names with a dot are somebody's for a moment, another start's probe for one.
        subfolders = sorted(
            path for path in run_dir.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        for folder in (run_dir, *subfolders):
            _try_to_write(folder)
    except OSError as error:
        raise InputError(
            f"run_dir={run_dir} cannot be written: {error.strerror} ({folder}). Give this user "
            "the right to write there, mount it for writing, make room, or name another run_dir"
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
