"""Which stages of a main job are finished, and what became of the others.

A stage is known by its fingerprint: the SHA-256 of its command, its composed settings, the
content of what it reads from outside, and the fingerprints of the stages whose outputs it reads.
So whatever changes, in a preset, on the command line or in the data, changes the fingerprint of
every stage that depends on it, and of no other. Code is not part of it: `force=true` (FORCE=1)
starts over after a change of the code.

Source: ours; the idea is that of build systems.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ernie_vilg.config.main_job import STAGES_FOLDER, JobConfig, StageConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file, sha256_of_json, write_json
from ernie_vilg.storage.json_files import read_json

Status = Literal["running", "finished", "failed", "stopped"]
Settings = Callable[[Sequence[str]], dict[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What is known of a stage's runs, kept in `stages/<name>.json`."""

    fingerprint: str
    """What the stage was, 64 hexadecimal digits."""
    status: Status
    """"running" also after the main job was killed outright."""
    command: str
    """As it was shown."""
    number: int = 0
    """Its place among the job's stages, from 1."""
    seconds: float = 0.0
    """Wall time, summed over attempts of the same fingerprint."""
    peak_memory_bytes: int = 0
    """Largest memory of all its processes together, over those attempts."""
    attempts: int = 0
    """How often it was started with this fingerprint."""
    outputs_sha256: str = ""
    """Hash of its outputs when it finished."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do with a stage."""

    is_finished: bool
    """Skip it."""
    is_continued: bool
    """Keep its outputs: the program goes on from them."""
    reason: str
    """Why, for people."""


def fingerprints(job: JobConfig, root: Path, settings: Settings) -> dict[str, str]:
    """Return the fingerprint of each stage by name.

    Args:
        job: the stages.
        root: folder that relative paths start from.
        settings: composes a command's settings; None for a command that is not ours.

    Raises:
        InputError: an input neither exists nor is made by an earlier stage.
    """
    found: dict[str, str] = {}
    makers: list[tuple[Path, str]] = []
    for stage in job.stages:
        command = job.command(stage)
        found[stage.name] = sha256_of_json(
            {
                "command": command,
                "environment": stage.environment,
                "settings": settings(command),
                "inputs": [
                    _input_digest(stage, path, root, makers, found) for path in stage.inputs
                ],
            }
        )
        makers += [(Path(output), stage.name) for output in stage.outputs]
    return found


def plan_stage(stage: StageConfig, fingerprint: str, state: StageState | None, root: Path) -> Plan:
    """Decide whether a stage is skipped, continued or run from its beginning."""
    if state is None:
        return Plan(is_finished=False, is_continued=False, reason="not run yet")
    if state.fingerprint != fingerprint:
        return Plan(
            is_finished=False,
            is_continued=False,
            reason="its command, settings or inputs changed: starting it over",
        )
    if state.status != "finished":
        how = "continuing" if stage.resumes else "starting it over"
        return Plan(
            is_finished=False, is_continued=stage.resumes, reason=f"not finished before: {how}"
        )
    if outputs_digest(stage, root) != state.outputs_sha256:
        return Plan(
            is_finished=False, is_continued=False, reason="its outputs changed: starting it over"
        )
    return Plan(is_finished=True, is_continued=False, reason="unchanged")


def begin_stage(
    stage: StageConfig, plan: Plan, fresh: StageState, previous: StageState | None, root: Path
) -> StageState:
    """Make room for a stage's run and return the state it starts with.

    Its outputs are removed unless the program continues from them; the cost of earlier attempts
    counts on when those had the same fingerprint and did not finish.

    Args:
        stage: what will run.
        plan: what `plan_stage` said of it.
        fresh: the state of a first attempt, not yet counted.
        previous: the state on disk, None when it never ran.
        root: folder that relative paths start from.
    """
    if not plan.is_continued:
        for output in stage.outputs:
            _remove(root / output)
    attempts, seconds, peak = 0, 0.0, 0
    if previous and previous.fingerprint == fresh.fingerprint and previous.status != "finished":
        attempts, seconds = previous.attempts, previous.seconds
        peak = previous.peak_memory_bytes
    return replace(fresh, attempts=attempts + 1, seconds=seconds, peak_memory_bytes=peak)


def missing_outputs(stage: StageConfig, root: Path) -> list[str]:
    """Return the outputs that a stage should have left and did not."""
    return [output for output in stage.outputs if not (root / output).exists()]


def outputs_digest(stage: StageConfig, root: Path) -> str:
    """Return the SHA-256 over names and content of a stage's outputs."""
    return sha256_of_json([content_digest(root / output) for output in stage.outputs])


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their names; "" for neither."""
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_of_json([[str(file.relative_to(path)), sha256_of_file(file)] for file in files])


def read_state(job_folder: Path, name: str) -> StageState | None:
    """Read a stage's state; None when it never ran.

    Raises:
        InputError: the file is not one of ours.
    """
    path = _state_file(job_folder, name)
    if not path.exists():
        return None
    try:
        return from_json(read_json(path), StageState, str(path))
    except InputError as error:
        raise InputError(f"{error}; or start over with force=true") from error


def write_state(job_folder: Path, name: str, state: StageState) -> None:
    """Write a stage's state whole."""
    write_json(_state_file(job_folder, name), asdict(state))


def _state_file(job_folder: Path, name: str) -> Path:
    return job_folder / STAGES_FOLDER / f"{name}.json"


def _input_digest(
    stage: StageConfig,
    given: str,
    root: Path,
    makers: Sequence[tuple[Path, str]],
    found: dict[str, str],
) -> str:
    path = Path(given)
    for output, maker in makers:
        if path == output or output in path.parents:
            return found[maker]
    if not (root / path).exists():
        raise InputError(
            f"stage {stage.name} reads {given}, which does not exist and which no earlier stage "
            "makes: put it there, or correct the path in conf/job/"
        )
    return content_digest(root / path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
