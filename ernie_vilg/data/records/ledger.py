"""The black box of a run: which positions of the sequence each step trained on, for good.

    ledger/
      steps.bin                    one record of 64 bytes per optimizer step
      sequence-<16 digits>.json    what decides which sample stands where
      quarantine-<16 digits>.jsonl the samples that were left out
      losses-<data rank>.jsonl     the damage that one replica met (`data.records.damage_log`)

A record names the other two by the first 16 digits of their SHA-256, so that all of a step can be
rebuilt from the run folder and the shards. Files only grow. A record goes to the kernel in one
write, so a killed process loses none; `Ledger.flush` takes them to the device, for machines that
lose power. What the end of the file has of a record that was never whole is cut away by the next
start; a record in the middle that differs from its CRC-32 is skipped. Both are reported.

Steps count as everywhere: step 400 is the update after which 400 have been made. A run that goes
on from a checkpoint makes the steps after it again: the last record of a step is the one that
counts, and it counts as long as no later record is of an earlier step.

Source: ours.
"""

import logging
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ernie_vilg.data.sequence.quarantine import Quarantine, read_quarantine
from ernie_vilg.data.sequence.sample_reader import SampleSequence
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import (
    fsync_folder,
    sha256_of_json,
    write_bytes,
    write_json,
)
from ernie_vilg.storage.json_files import read_bounded, read_object
from ernie_vilg.storage.jsonl import line_of
from ernie_vilg.storage.locations import is_remote, shown

STEPS_NAME = "steps.bin"
_CUT_NAME = "steps-cut.bin"
_FORMAT = b"EVS1"
_RECORD = np.dtype(
    [
        ("format", "S4"),
        ("launch", "<u4"),
        ("step", "<i8"),
        ("first_position", "<i8"),
        ("num_positions", "<u4"),
        ("data_parallel_size", "<u4"),
        ("unix_seconds", "<f8"),
        ("sequence", "V8"),
        ("quarantine", "V8"),
        ("micro_batch_size", "<u4"),
        ("crc32", "<u4"),
    ]
)
_GUARDED = np.dtype([("content", f"V{_RECORD.itemsize - 4}"), ("crc32", "<u4")])
_DIGITS = 16
_MOST_BYTES = 1 << 30
"""Largest file of records that is read: 16 million steps."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one optimizer step trained on."""

    step: int
    """Steps made, this one included."""
    first_position: int
    """Of the training sequence."""
    num_positions: int
    """Consecutive ones; the global batch."""
    unix_seconds: float
    """When the step was done."""
    launch: int
    """Which start of the run made it, from 1, counting those that made a step."""
    data_parallel_size: int
    """Replicas that shared the batch."""
    micro_batch_size: int
    """Samples per forward pass of a replica."""
    sequence: str
    """First 16 hexadecimal digits that name the sequence's description."""
    quarantine: str
    """First 16 hexadecimal digits of the quarantine's digest."""


@dataclass(frozen=True, kw_only=True)
class StepHistory:
    """All records of one step."""

    record: StepRecord
    """The last one."""
    earlier: tuple[StepRecord, ...]
    """Of the times that were rolled back, oldest first."""
    is_in_effect: bool
    """Whether the run has not gone back to before this step since."""


@dataclass(frozen=True, kw_only=True)
class LedgerSteps:
    """Every record of a run."""

    run_dir: Path
    """The run's folder."""
    records: np.ndarray
    """The undamaged ones in the order of the file, with the fields of `StepRecord`."""
    damaged: tuple[int, ...]
    """Numbers of the records in the file that differ from their CRC-32, from 0."""
    torn_bytes: int
    """At the end of the file, of a record that is not whole."""

    def history(self, step: int) -> StepHistory:
        """Return the records of one step.

        Raises:
            InputError: there is none; the message says which steps there are.
        """
        steps = self.records["step"]
        (rows,) = np.nonzero(steps == step)
        if not len(rows):
            raise InputError(self._missing(step))
        *earlier, record = (_step_record(self.records[row]) for row in rows)
        return StepHistory(
            record=record,
            earlier=tuple(earlier),
            is_in_effect=bool((steps[rows[-1] + 1 :] > step).all()),
        )

    def _missing(self, step: int) -> str:
        steps = self.records["step"]
        if not len(steps):
            return f"the ledger of {self.run_dir} has no step yet: wait for the run's first"
        damaged = f" and {len(self.damaged)} damaged records" if self.damaged else ""
        return (
            f"step={step} is not in the ledger of {self.run_dir}, which has steps {steps.min()} "
            f"to {steps.max()}{damaged}: choose one of these steps"
        )


def ledger_folder(run_dir: Path) -> Path:
    """Return where a run's ledger is."""
    return run_dir / "ledger"


def recorded_location(location: str) -> str:
    """Return a location as it is written down.

    A local folder is named from the root, which means the same from every folder; a URL without
    user, password and query, which may be secrets.
    """
    return shown(location) if is_remote(location) else str(Path(location).resolve())


def describe_sequence(sequence: SampleSequence, global_batch_size: int) -> dict[str, Any]:
    """Return as JSON values what decides which samples a step takes, and where they are.

    The quarantine has a file of its own.

    Args:
        sequence: of the run.
        global_batch_size: samples per step.
    """
    return {
        "seed": sequence.seed,
        "shuffle_block_shards": sequence.shuffle_block_shards,
        "global_batch_size": global_batch_size,
        "data_sets": [
            {
                "name": source.name,
                "location": recorded_location(source.location),
                "manifest": source.manifest.digest(),
            }
            for source in sequence.sources
        ],
        "mixture": [
            {"first_position": phase.first_position, "weights": list(phase.weights)}
            for phase in sequence.phases
        ],
    }


class Ledger:
    """The ledger of a run that is training; one process at a time writes it."""

    def __init__(
        self,
        run_dir: Path,
        *,
        sequence: Mapping[str, Any],
        quarantine: Quarantine,
        data_parallel_size: int,
        micro_batch_size: int,
    ) -> None:
        """Write down what the records of this launch refer to, and open the file for them.

        Args:
            run_dir: the run's folder.
            sequence: what `describe_sequence` says of this launch.
            quarantine: the samples that this launch leaves out.
            data_parallel_size: replicas of this launch.
            micro_batch_size: samples per forward pass of a replica.
        """
        folder = ledger_folder(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._sequence = _write_sequence(folder, sequence)
        self._quarantine = _write_quarantine(folder, quarantine)
        self._data_parallel_size = data_parallel_size
        self._micro_batch_size = micro_batch_size
        path = folder / STEPS_NAME
        launches = _cut_end(path)["launch"] if path.exists() else np.empty(0, np.int64)
        self._launch = int(launches.max(initial=0)) + 1
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        fsync_folder(folder)

    def append(self, step: int, first_position: int, num_positions: int) -> None:
        """Record a step that has just been made.

        Args:
            step: steps made, this one included.
            first_position: of the sequence.
            num_positions: consecutive ones that the step trained on.

        Raises:
            OSError: the record could not be written whole.
        """
        record = np.zeros((), _RECORD)
        record["format"] = _FORMAT
        record["launch"] = self._launch
        record["step"] = step
        record["first_position"] = first_position
        record["num_positions"] = num_positions
        record["data_parallel_size"] = self._data_parallel_size
        record["unix_seconds"] = time.time()
        record["sequence"] = np.void(bytes.fromhex(self._sequence))
        record["quarantine"] = np.void(bytes.fromhex(self._quarantine))
        record["micro_batch_size"] = self._micro_batch_size
        record["crc32"] = zlib.crc32(record.tobytes()[: -_RECORD["crc32"].itemsize])
        written = os.write(self._file, record.tobytes())
        if written != _RECORD.itemsize:
            raise OSError(
                f"the ledger's record of step {step} was written to {written} of "
                f"{_RECORD.itemsize} bytes: make room on the run folder's disk and start again"
            )

    def flush(self) -> None:
        """Take all records to the device: before a checkpoint, so that it has no unknown steps."""
        os.fsync(self._file)

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        os.close(self._file)


def read_steps(run_dir: Path) -> LedgerSteps:
    """Read every record of a run.

    Raises:
        InputError: the run has no ledger, or one of more than 1 GiB.
    """
    path = ledger_folder(run_dir) / STEPS_NAME
    if not path.is_file():
        raise InputError(
            f"{run_dir} has no ledger ({path.relative_to(run_dir)}): name the run_dir of a "
            "launch/pretrain.py run; runs of before the ledger cannot be explained"
        )
    content = read_bounded(path, most_bytes=_MOST_BYTES)
    records, is_whole = _check_records(content)
    return LedgerSteps(
        run_dir=run_dir,
        records=records[is_whole],
        damaged=tuple(np.flatnonzero(~is_whole).tolist()),
        torn_bytes=len(content) % _RECORD.itemsize,
    )


def read_step(run_dir: Path, step: int) -> StepHistory:
    """Read the records of one step.

    Raises:
        InputError: the run has no ledger, or no record of the step; the message says which steps
            it has.
    """
    return read_steps(run_dir).history(step)


def read_sequence(run_dir: Path, digest: str) -> Mapping[str, Any]:
    """Read the description of a sequence.

    Args:
        run_dir: the run's folder.
        digest: 16 hexadecimal digits, of a record.

    Raises:
        InputError: it is missing, or is not what the digits name.
    """
    path = ledger_folder(run_dir) / f"sequence-{digest}.json"
    _require(path)
    content = read_object(path)
    _check_digest(path, sha256_of_json(content), digest)
    return content


def read_past_quarantine(run_dir: Path, digest: str) -> Quarantine:
    """Read the quarantine of some time; arguments and errors as `read_sequence`."""
    path = ledger_folder(run_dir) / f"quarantine-{digest}.jsonl"
    _require(path)
    quarantine = read_quarantine(path)
    _check_digest(path, quarantine.digest(), digest)
    return quarantine


def _check_records(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the records of a file, and whether each is as it was written, bool [records]."""
    whole = content[: len(content) // _RECORD.itemsize * _RECORD.itemsize]
    guarded = np.frombuffer(whole, _GUARDED)
    actual = map(zlib.crc32, guarded["content"].tolist())
    is_whole = np.fromiter(actual, np.uint32, len(guarded)) == guarded["crc32"]
    records = np.frombuffer(whole, _RECORD)
    # A file system that lost its power may leave zeros, and so may their CRC-32 be chance.
    return records, is_whole & (records["format"] == _FORMAT)


def _cut_end(path: Path) -> np.ndarray:
    """Cut away what follows the last undamaged record; return the undamaged records."""
    content = read_bounded(path, most_bytes=_MOST_BYTES)
    records, is_whole = _check_records(content)
    kept = np.flatnonzero(is_whole)
    end = (int(kept[-1]) + 1) * _RECORD.itemsize if len(kept) else 0
    if end < len(content):
        with path.with_name(_CUT_NAME).open("ab") as file:
            file.write(content[end:])
        os.truncate(path, end)
        logger.warning(
            "%s ended in %d bytes that are no whole record, of a process that was killed or a "
            "machine that lost its power; they are in %s now",
            path,
            len(content) - end,
            _CUT_NAME,
        )
    damaged = int((~is_whole[: len(kept) and kept[-1]]).sum())
    if damaged:
        logger.warning("%s has %d damaged records, which are skipped", path, damaged)
    return records[is_whole]


def _step_record(row: Any) -> StepRecord:
    return StepRecord(
        step=int(row["step"]),
        first_position=int(row["first_position"]),
        num_positions=int(row["num_positions"]),
        unix_seconds=float(row["unix_seconds"]),
        launch=int(row["launch"]),
        data_parallel_size=int(row["data_parallel_size"]),
        micro_batch_size=int(row["micro_batch_size"]),
        sequence=row["sequence"].tobytes().hex(),
        quarantine=row["quarantine"].tobytes().hex(),
    )


def _write_sequence(folder: Path, sequence: Mapping[str, Any]) -> str:
    """Write a description that is not there yet; return its digits."""
    digest = sha256_of_json(sequence)[:_DIGITS]
    path = folder / f"sequence-{digest}.json"
    if not path.exists():
        write_json(path, sequence)
    return digest


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


def _require(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing: restore it")


def _check_digest(path: Path, actual: str, expected: str) -> None:
    if not actual.startswith(expected):
        raise InputError(f"{path} was changed, it has the digest {actual[:_DIGITS]}: restore it")
