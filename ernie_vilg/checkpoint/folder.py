"""The checkpoint folder: files, and a manifest with the hash of each.

A checkpoint is a folder `checkpoints/step_<step>` of a run folder, renamed into place once it
is whole. Its `checkpoint.json` names every other file with its size and SHA-256, the step, and
the identity: the settings that a run must share to resume from it. The manifest holds its own
hash too.

Folders beside the checkpoints whose names begin with a dot are not checkpoints: storage.files
describes them. One exception: where a kill left only the replaced folder of a step that was saved
again, that folder is the step's checkpoint.
"""

import json
import logging
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder, step_in
from ernie_vilg.storage.files import (
    REPLACED_PREFIX,
    json_bytes,
    sha256_of_file,
    sha256_of_json,
    write_json,
)
from ernie_vilg.storage.json_files import MOST_BYTES, object_of, parse_json, read_bounded

MANIFEST_NAME = "checkpoint.json"
FORMAT_VERSION = 2
CHECKPOINT_PARTS = ("layout", "state", "versions")
"""Objects that the manifest of a checkpoint must hold."""
START = "start"
"""Key, in the identity, of the weights that a run started from; without it they were fresh."""

_OWN_HASH = "sha256"

logger = logging.getLogger(__name__)


def step_of(folder: Path) -> int | None:
    """Return the step in a checkpoint's name, None for another name."""
    return step_in(folder.name.removeprefix(REPLACED_PREFIX))


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of a run's committed checkpoints, the newest step first.

    The step decides, not the files' times, because clocks of machines differ.
    """
    folder = RunFolder(run_dir).checkpoints
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        step = step_of(path)
        if step is not None and (step not in found or not path.name.startswith(REPLACED_PREFIX)):
            found[step] = path
    return [found[step] for step in sorted(found, reverse=True)]


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


def write_checkpoint_manifest(
    folder: Path,
    *,
    step: int,
    identity: Mapping[str, Any],
    files: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> None:
    """Write the manifest of a checkpoint, its last file.

    Args:
        folder: the checkpoint, still under its temporary name.
        step: steps taken.
        identity: JSON values that a run must share to resume from here.
        files: entries of every file: `file`, `bytes`, `sha256`, and more for people.
        about: further JSON values.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "identity": dict(identity),
        **about,
        "files": sorted(files, key=lambda entry: str(entry["file"])),
    }
    content = json.loads(json.dumps(content))  # as it will be read: keys become texts
    write_json(folder / MANIFEST_NAME, {**content, _OWN_HASH: sha256_of_json(content)})


def read_checkpoint_manifest(folder: Path, parts: Collection[str] = ()) -> dict[str, Any]:
    """Return the manifest of a checkpoint, if it is as it was written.

    Args:
        folder: the checkpoint.
        parts: objects that the manifest must hold, such as `CHECKPOINT_PARTS`.

    Raises:
        InputError: it is missing, damaged or of another version.
    """
    path, name = folder / MANIFEST_NAME, f"its {MANIFEST_NAME}"
    if not path.is_file():
        raise InputError(f"it has no {MANIFEST_NAME}")
    raw = read_bounded(path, most_bytes=MOST_BYTES)
    content = object_of(parse_json(raw, name), name)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"its format_version is {version!r:.40}, not {FORMAT_VERSION}")
    own_hash = content.pop(_OWN_HASH, None)
    if own_hash != sha256_of_json(content) or raw != json_bytes({**content, _OWN_HASH: own_hash}):
        raise InputError(f"its {MANIFEST_NAME} differs from its own SHA-256")
    for part in parts:
        object_of(content.get(part), f"{name}: {part}")
    _check_types(content, name)
    if step_of(folder) not in (None, content["step"]):
        raise InputError(f"its {MANIFEST_NAME} is of step {content['step']}")
    return content


def _check_types(content: Mapping[str, Any], name: str) -> None:
    """Refuse a manifest whose parts are missing or of a wrong type."""
    kinds: dict[str, Any] = {"step": int, "identity": Mapping[str, Any]}
    for key, kind in kinds.items():
        from_json(content.get(key), kind, f"{name}: {key}")
    entries = content.get("files")
    if not isinstance(entries, list):
        raise InputError(f"{name} lists no files")
    for index, entry in enumerate(entries):
        place = f"{name}: files[{index}]"
        for key, kind in {"file": str, "bytes": int, "sha256": str}.items():
            from_json(object_of(entry, place).get(key), kind, f"{place}.{key}")


def wrong_files(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Name a file that is missing, unknown or of another size; None if all are as in the manifest.

    An unknown file is damage too: DeepSpeed would read it if it has the right name.
    """
    sizes, others = {}, []
    for path in folder.rglob("*"):
        status, name = path.lstat(), str(path.relative_to(folder))
        if stat.S_ISREG(status.st_mode):
            sizes[name] = status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            others.append(name)
    if others:
        return f"{min(others)} is not in the manifest: it is a link or another special file"
    sizes.pop(MANIFEST_NAME, None)
    expected = {entry["file"]: entry["bytes"] for entry in manifest["files"]}
    for name in sorted({*sizes, *expected}):
        if name not in sizes:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in the manifest"
        if sizes[name] != expected[name]:
            return f"{name} has {sizes[name]} bytes, not {expected[name]}"
    return None


def wrong_content(folder: Path, entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Name a file that differs from its hash, None if none does.

    Args:
        folder: the checkpoint.
        entries: entries of its manifest to check.
    """
    for entry in entries:
        try:
            sha256 = sha256_of_file(folder / entry["file"])
        except OSError as error:  # a device that cannot read is damage too
            return f"{entry['file']} cannot be read ({error})"
        if sha256 != entry["sha256"]:
            return f"{entry['file']} differs from its SHA-256"
    return None


def verify_checkpoint(folder: Path, parts: Collection[str] = ()) -> str | None:
    """Return the fault of a checkpoint in words, None if every file is as it was written."""
    try:
        manifest = read_checkpoint_manifest(folder, parts)
        return wrong_files(folder, manifest) or wrong_content(folder, manifest["files"])
    except (OSError, InputError) as error:
        return str(error)


def newest_checkpoint(run_dir: Path, parts: Collection[str] = ()) -> Path | None:
    """Return the newest checkpoint of a run that verifies, None if none does."""
    for folder in committed_checkpoints(run_dir):
        problem = verify_checkpoint(folder, parts)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is not used: %s", folder, problem)
    return None


def check_fresh(run_dir: Path) -> None:
    """Refuse to start from scratch in the folder of a run that has started.

    Raises:
        InputError: the folder holds checkpoints or metrics.
    """
    if committed_checkpoints(run_dir) or RunFolder(run_dir).metrics.exists():
        raise InputError(
            f"{run_dir} holds a run but no checkpoint of it that verifies: restore its "
            "checkpoints folder, or name another run_dir to start afresh"
        )


def check_identity(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to resume a checkpoint of a run with other settings.

    Raises:
        InputError: some differ; the message lists them.
    """
    different = [
        f"{name}: {theirs.get(name)!r} in the checkpoint, {ours.get(name)!r} now"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if different:
        raise InputError(
            f"{folder} was written by a run with other settings ({'; '.join(different)}): set "
            "them as they were to go on, or name another run_dir to start afresh"
        )
