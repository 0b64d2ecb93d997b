"""What makes a folder a checkpoint: a manifest with the hash of every file in it.

A checkpoint is a folder `checkpoints/step_<step>` of a run folder, renamed into place once it
is whole. Its `checkpoint.json` names every other file with its size and SHA-256, the step, and
the identity: the settings that a run must share to go on from it.

Source: ours.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ernie_vilg.files import read_json, sha256_of_file, write_json

MANIFEST_NAME = "checkpoint.json"
FORMAT_VERSION = 1
TEMPORARY_PREFIX = ".writing-"
"""Of the name of a checkpoint that is being written."""

logger = logging.getLogger(__name__)


def checkpoints_folder(run_dir: Path) -> Path:
    """Return where a run's checkpoints are."""
    return run_dir / "checkpoints"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return checkpoints_folder(run_dir) / f"step_{step:08d}"


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of a run's committed checkpoints, the newest step first."""
    return sorted(checkpoints_folder(run_dir).glob("step_*"), reverse=True)


def describe_files(folder: Path, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the manifest's entries of some files of a folder."""
    return [
        {
            "file": str(path.relative_to(folder)),
            "bytes": path.stat().st_size,
            "sha256": sha256_of_file(path),
        }
        for path in files
    ]


def write_manifest(
    folder: Path,
    *,
    step: int,
    identity: Mapping[str, Any],
    files: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> None:
    """Write the manifest of a checkpoint, the last file of it.

    Args:
        folder: the checkpoint, still under its temporary name.
        step: steps taken.
        identity: JSON values that a run must share to go on from here.
        files: entries of `describe_files` for every file.
        about: further JSON values.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "identity": dict(identity),
        **about,
        "files": sorted(files, key=lambda entry: str(entry["file"])),
    }
    write_json(folder / MANIFEST_NAME, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint that verifies."""
    content: dict[str, Any] = read_json(folder / MANIFEST_NAME)
    return content


def verify_checkpoint(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, None if every file is as it was written."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return f"it has no {MANIFEST_NAME}"
    try:
        manifest = read_json(path)
        entries = [(folder / entry["file"], entry) for entry in manifest["files"]]
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST_NAME} cannot be read ({error})"
    if manifest.get("format_version") != FORMAT_VERSION:
        return f"its format_version is {manifest.get('format_version')}, not {FORMAT_VERSION}"
    for file, entry in entries:
        if not file.is_file():
            return f"{entry['file']} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{entry['file']} has {file.stat().st_size} bytes, not {entry['bytes']}"
        if sha256_of_file(file) != entry["sha256"]:
            return f"{entry['file']} differs from its SHA-256"
    return None


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run that verifies, None if none does."""
    for folder in committed_checkpoints(run_dir):
        problem = verify_checkpoint(folder)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is not used: %s", folder, problem)
    return None


def resumable_checkpoint(
    run_dir: Path, identity_at: Callable[[int], Mapping[str, Any]], *, metrics_name: str
) -> Path | None:
    """Return the checkpoint that a run goes on from, None in a fresh run folder.

    Args:
        run_dir: the run's folder.
        identity_at: identity of the run that is starting, as its checkpoint of a step would
            have it.
        metrics_name: the file that a run has written once it has started.

    Raises:
        ValueError: the folder is not fresh and no checkpoint verifies, or the newest one
            belongs to other settings.
    """
    newest = newest_checkpoint(run_dir)
    if newest is not None:
        _check_identity(newest, identity_at)
        return newest
    if committed_checkpoints(run_dir) or (run_dir / metrics_name).exists():
        raise ValueError(
            f"{run_dir} holds a run but no checkpoint of it that verifies: restore its "
            "checkpoints folder, or name another run_dir to start afresh"
        )
    return None


def _check_identity(folder: Path, identity_at: Callable[[int], Mapping[str, Any]]) -> None:
    manifest = read_manifest(folder)
    theirs, ours = manifest["identity"], identity_at(manifest["step"])
    different = [
        f"{name}: {theirs.get(name)!r} in the checkpoint, {ours.get(name)!r} now"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if different:
        raise ValueError(
            f"{folder} was written by a run with other settings ({'; '.join(different)}): set "
            "them as they were to go on, or name another run_dir to start afresh"
        )
