"""States of a main job's stages, and the decision which of them run again.

A stage's fingerprint is the SHA-256 of its command, its composed settings, the content of its
inputs, and the fingerprints of the stages that make its inputs. A change in a preset, on the
command line or in the data therefore changes the fingerprints of the stages that depend on it, and
of no other. The fingerprint does not cover code: after a change of the code, `force=true` (FORCE=1)
starts over.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ernie_vilg.config.main_job import STAGES_FOLDER, JobConfig, StageConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import remove, sha256_of_file, sha256_of_json, write_json
from ernie_vilg.storage.json_files import read_json

Status = Literal["running", "finished", "failed", "stopped"]
Settings = Callable[[Sequence[str]], dict[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class StageState:
    """State of a stage, kept in `stages/<name>.json`."""

    fingerprint: str
    """Fingerprint of the last attempt, 64 hexadecimal digits."""
    status: Status
    """Status; still "running" if the main job was killed."""
    command: str
    """Command as printed."""
    number: int = 0
    """Number of the stage in the job, from 1."""
    seconds: float = 0.0
    """Wall time, summed over the attempts of this fingerprint."""
    peak_memory_bytes: int = 0
    """Peak memory of all processes together, over those attempts."""
    attempts: int = 0
    """Number of attempts of this fingerprint."""
    outputs_sha256: str = ""
    """Hash of the outputs of a finished stage."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Decision whether a stage runs, and from where."""

    is_finished: bool = False
    """Whether to skip the stage."""
    is_continued: bool = False
    """Whether to keep the stage's outputs, from which the program goes on."""
    reason: str
    """Reason in words."""


def fingerprints(job: JobConfig, root: Path, settings: Settings) -> dict[str, str]:
    """Return the fingerprint of each stage by name.

    Args:
        job: the stages.
        root: folder that relative paths start from.
        settings: function that composes a command's settings; None for other programs.

    Raises:
        InputError: an input does not exist, and no earlier stage makes it.
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


def decide(stage: StageConfig, fingerprint: str, state: StageState | None, root: Path) -> Decision:
    """Decide whether a stage is skipped, continued or started over."""
    if state is None:
        return Decision(reason="not run yet")
    if state.fingerprint != fingerprint:
        return Decision(reason="its command, settings or inputs changed: starting it over")
    if state.status != "finished":
        how = "continuing" if stage.resumes else "starting it over"
        return Decision(is_continued=stage.resumes, reason=f"not finished before: {how}")
    if outputs_digest(stage, root) != state.outputs_sha256:
        return Decision(reason="its outputs changed: starting it over")
    return Decision(is_finished=True, reason="unchanged")


def begin_stage(
    stage: StageConfig,
    decision: Decision,
    fresh: StageState,
    previous: StageState | None,
    root: Path,
) -> StageState:
    """Remove a stage's outputs unless it continues; return the state at its start.

    The cost of earlier attempts counts if they had the same fingerprint and did not finish.

    Args:
        stage: the stage that will run.
        decision: the result of `decide`.
        fresh: state of a first attempt, before it is counted.
        previous: state on disk; None if the stage never ran.
        root: folder that relative paths start from.
    """
    if not decision.is_continued:
        for output in stage.outputs:
            remove(root / output)
    attempts, seconds, peak = 0, 0.0, 0
    if previous and previous.fingerprint == fresh.fingerprint and previous.status != "finished":
        attempts, seconds = previous.attempts, previous.seconds
        peak = previous.peak_memory_bytes
    return replace(fresh, attempts=attempts + 1, seconds=seconds, peak_memory_bytes=peak)


def missing_outputs(stage: StageConfig, root: Path) -> list[str]:
    """Return the outputs that a stage did not leave."""
    return [output for output in stage.outputs if not (root / output).exists()]


def outputs_digest(stage: StageConfig, root: Path) -> str:
    """Return the SHA-256 of the names and content of a stage's outputs."""
    return sha256_of_json([content_digest(root / output) for output in stage.outputs])


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's names and files; "" for neither."""
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_of_json([[str(file.relative_to(path)), sha256_of_file(file)] for file in files])


def read_state(job_folder: Path, name: str) -> StageState | None:
    """Read a stage's state; None if it never ran.

    Raises:
        InputError: the file is no stage's state.
    """
    path = _state_file(job_folder, name)
    if not path.exists():
        return None
    try:
        return from_json(read_json(path), StageState, str(path))
    except InputError as error:
        raise InputError(f"{error}; or start over with force=true") from error


def write_state(job_folder: Path, name: str, state: StageState) -> None:
    """Write a stage's state atomically."""
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
            "makes: provide it, or correct the path in conf/job/"
        )
    return content_digest(root / path)
