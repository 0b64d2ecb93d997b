"""The ledger: the positions of the training sequence that each step of a run trained on.

    ledger/
      steps.jsonl                  one line per launch, rollback or change of the global batch
      quarantine-<16 digits>.jsonl samples that a launch excluded, by the SHA-256 of their names

Between two lines only the step changes. A line holds its first and its last step, the positions of
the first, and everything that decides which sample stands where; the rest is arithmetic. Each step
overwrites the last number of the newest line in place, so a killed process loses no step.

Step s is the update after which s updates have been made. A run that resumes from a checkpoint, or
goes back to one, makes the later steps again: the last line with a step counts, and it counts as
long as no later line begins at or before the step.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ernie_vilg.config.schema import NaturalInt, PositiveInt, check, from_json
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.quarantine import Quarantine, read_quarantine
from ernie_vilg.data.sequence.sample_sequence import SampleSequence
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.jsonl import append_lines, line_of, read_records
from ernie_vilg.storage.locations import recorded_location

STEPS_NAME = "steps.jsonl"
_OLD_STEPS_NAME = "steps.bin"
_STEP_DIGITS = 18
_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class DataSetRecord:
    """One data set that a launch read."""

    name: str
    """Name within the run."""
    location: str
    """Folder or URL of its shards."""
    manifest: str
    """SHA-256 of its manifest."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Consecutive steps of one launch: a line of the ledger, or one step of it."""

    launch: PositiveInt
    """Number of the launch, from 1; a launch that made no step does not count."""
    unix_seconds: float
    """Unix time just after the first step of the line."""
    data_parallel_size: PositiveInt
    """Number of replicas that shared each batch."""
    micro_batch_size: PositiveInt
    """Samples per forward pass of a replica."""
    seed: int
    """Seed of the order of the samples."""
    shuffle_block_shards: PositiveInt
    """Shards whose samples are shuffled together."""
    data_sets: tuple[DataSetRecord, ...]
    """The data sets, in the order of the weights."""
    mixture: tuple[MixtureSegment, ...]
    """Weights of the data sets, by the position at which they begin to hold."""
    quarantine: str
    """First 16 hexadecimal digits of the quarantine's SHA-256."""
    num_positions: PositiveInt
    """Consecutive positions per step: the global batch."""
    first_position: NaturalInt
    """First position of the first step."""
    first_step: PositiveInt
    """First step, from 1."""
    last_step: PositiveInt
    """Last step that was made."""

    def at(self, step: int) -> "StepRecord":
        """Return the record of one step."""
        first = self.first_position + (step - self.first_step) * self.num_positions
        return replace(self, first_position=first, first_step=step, last_step=step)


@dataclass(frozen=True, kw_only=True)
class StepHistory:
    """Everything that the ledger says about one step."""

    record: StepRecord
    """Record of the last time that the step was made."""
    earlier: tuple[StepRecord, ...]
    """Records of the times that were rolled back, oldest first."""
    is_in_effect: bool
    """Whether the run has not gone back to before this step since."""
    num_unreadable_lines: int
    """Number of lines of the ledger that cannot be read."""


class Ledger:
    """Writer of a run's ledger. One process at a time has it."""

    def __init__(
        self,
        folder: Path,
        sequence: SampleSequence[Any],
        *,
        data_parallel_size: int,
        micro_batch_size: int,
    ) -> None:
        """Open the ledger and write this launch's quarantine; the first step begins a line.

        Args:
            folder: the run's ledger folder; it is created if needed.
            sequence: the sequence that this launch trains on.
            data_parallel_size: replicas of this launch.
            micro_batch_size: samples per forward pass of a replica.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / STEPS_NAME
        lines, _ = read_records(self._path, _record_of)
        self._new_record = partial(
            StepRecord,
            launch=max((line.launch for line in lines), default=0) + 1,
            data_parallel_size=data_parallel_size,
            micro_batch_size=micro_batch_size,
            seed=sequence.seed,
            shuffle_block_shards=sequence.shuffle_block_shards,
            data_sets=tuple(
                DataSetRecord(
                    name=source.name,
                    location=recorded_location(source.location),
                    manifest=source.manifest.digest(),
                )
                for source in sequence.sources
            ),
            mixture=sequence.mixture,
            quarantine=_write_quarantine(folder, sequence.quarantine),
        )
        self._record: StepRecord | None = None
        self._place = 0
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def append(self, step: int, first_position: int, num_positions: int) -> None:
        """Record a step that has just been made.

        Args:
            step: the step, from 1.
            first_position: first position that the step trained on.
            num_positions: number of consecutive positions.

        Raises:
            OSError: the record could not be written whole.
        """
        record = self._record
        if record is not None and (step, first_position, num_positions) == (
            record.last_step + 1,
            record.at(step).first_position,
            record.num_positions,
        ):
            self._record = replace(record, last_step=step)
            os.pwrite(self._file, b"%*d" % (_STEP_DIGITS, step), self._place)
            return
        self._record = self._new_record(
            unix_seconds=time.time(),
            num_positions=num_positions,
            first_position=first_position,
            first_step=step,
            last_step=step,
        )
        line = line_of(asdict(self._record)).removesuffix(b"%d}\n" % step)
        size = append_lines(self._path, line + b"%*d}\n" % (_STEP_DIGITS, step))
        self._place = size - len(b"}\n") - _STEP_DIGITS

    def close(self) -> None:
        """Flush the file to the device, and close it."""
        os.fsync(self._file)
        os.close(self._file)


def read_ledger(folder: Path) -> tuple[list[StepRecord], int]:
    """Return the lines of a run's ledger in order, and the number of lines that cannot be read.

    Args:
        folder: the run's ledger folder.

    Raises:
        InputError: the run has no ledger.
    """
    path = folder / STEPS_NAME
    if not path.is_file():
        raise InputError(
            f"{folder} has no {STEPS_NAME}: name the run_dir of a launch/pretrain.py run"
            f"{_older_ledger(folder)}"
        )
    lines, num_unreadable = read_records(path, _record_of)
    if lines and not num_unreadable:
        # After a power failure a line may end too early. The steps up to the next line were made.
        lines = [
            replace(line, last_step=max(line.last_step, following.first_step - 1))
            for line, following in pairwise([*lines, lines[-1]])
        ]
    return lines, num_unreadable


def read_step(folder: Path, step: int) -> StepHistory:
    """Return everything that a run's ledger says about one step.

    Args:
        folder: the run's ledger folder.
        step: the step, from 1.

    Raises:
        InputError: the run has no ledger, or no record of the step; the message says which steps
            it has.
    """
    lines, num_unreadable = read_ledger(folder)
    found = [row for row, line in enumerate(lines) if line.first_step <= step <= line.last_step]
    if not found and not lines:
        raise InputError(
            f"the ledger {folder} has no step yet: wait for the run's first{_older_ledger(folder)}"
        )
    if not found:
        unreadable = f" and {num_unreadable} unreadable lines" if num_unreadable else ""
        raise InputError(
            f"step={step} is not in the ledger {folder}, which has steps "
            f"{min(line.first_step for line in lines)} to {max(line.last_step for line in lines)}"
            f"{unreadable}: choose one of these steps{_older_ledger(folder)}"
        )
    *earlier, record = (lines[row].at(step) for row in found)
    return StepHistory(
        record=record,
        earlier=tuple(earlier),
        is_in_effect=all(line.first_step > step for line in lines[found[-1] + 1 :]),
        num_unreadable_lines=num_unreadable,
    )


def read_past_quarantine(folder: Path, digest: str) -> Quarantine:
    """Read the quarantine of a launch.

    Args:
        folder: the run's ledger folder.
        digest: the 16 hexadecimal digits of a record.

    Raises:
        InputError: the file is missing, or has another digest.
    """
    path = folder / f"quarantine-{digest}.jsonl"
    if not path.is_file():
        raise InputError(f"{path} is missing: restore it")
    quarantine = read_quarantine(path)
    if quarantine.digest()[:_DIGITS] != digest:
        raise InputError(f"{path} was changed, it has another digest: restore it")
    return quarantine


def _record_of(content: Mapping[str, Any], name: str) -> StepRecord:
    record = from_json(content, StepRecord, name)
    check(record, name)
    if not re.fullmatch(f"[0-9a-f]{{{_DIGITS}}}", record.quarantine):
        raise InputError(f"{name}: quarantine is no digest of {_DIGITS} digits: restore it")
    return record


def _older_ledger(folder: Path) -> str:
    """Return the ending of a message where an older version wrote steps in another form."""
    if not (folder / _OLD_STEPS_NAME).is_file():
        return ""
    return f"; the steps in {_OLD_STEPS_NAME} can be explained by the version that made them"


def _write_quarantine(folder: Path, quarantine: Quarantine) -> str:
    """Write a quarantine that is not there yet; return its digits."""
    digest = quarantine.digest()[:_DIGITS]
    path = folder / f"quarantine-{digest}.jsonl"
    if not path.exists():
        lines = [
            line_of({name: value for name, value in asdict(entry).items() if value})
            for entry in quarantine.entries
        ]
        write_bytes(path, b"".join(lines))
    return digest
