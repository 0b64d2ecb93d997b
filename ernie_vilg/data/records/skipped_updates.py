"""The updates that a run skipped, and the samples in their batches.

    ledger/skips-<data rank>.jsonl      one line per skipped update and replica

A line names the replica's samples as `quarantine.jsonl` does, so that the entry of a bad sample can
be copied there as it stands.
"""

import logging
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.config.schema import from_json
from ernie_vilg.data.sequence.sample_reader import Origins, SampleReader
from ernie_vilg.data.sequence.sample_sequence import SampleSequence
from ernie_vilg.data.shards.damage import DamageError
from ernie_vilg.data.shards.open_shards import KEY
from ernie_vilg.storage.jsonl import append_records, read_records

MAX_SAMPLES = 256
"""Largest number of samples that a line names: the first ones of the share."""

_NUM_REMEMBERED_STEPS = 8  # a verdict comes at most one step late

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleName:
    """One sample of a skipped update."""

    data_set: str
    """Name of the data set within the run."""
    shard: str
    """File of the shard."""
    index: int
    """Index of the sample in its shard."""
    key: str
    """Key of the sample; empty where the shard could not be read again."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """One replica's part of a skipped update."""

    step: int
    """Step of the update, from 1."""
    reason: str
    """Reason of the skip: nan, inf or spike."""
    loss: float | None
    """Mean loss over the global batch; None where it is not finite."""
    limit: float | None
    """Loss above which an update is a spike; None while there is no limit."""
    gradient_norm: float | None
    """Norm of the whole gradient; None where it is not finite."""
    ranks: tuple[int, ...]
    """Ranks on which the loss or a gradient was not finite."""
    first_position: int
    """First position of the replica's samples in the training sequence."""
    num_positions: int
    """Number of consecutive positions."""
    samples: tuple[SampleName, ...]
    """The samples at these positions, at most `MAX_SAMPLES`; empty where they are not known."""


class RecentOrigins:
    """The origins of the samples of the last steps, on one rank."""

    def __init__(self) -> None:
        self._origins: OrderedDict[int, Origins] = OrderedDict()

    def remember(self, step: int, origins: Origins) -> None:
        """Keep the origins of a step, and forget those of older steps."""
        self._origins[step] = origins
        self._origins.move_to_end(step)
        while len(self._origins) > _NUM_REMEMBERED_STEPS:
            self._origins.popitem(last=False)

    def at(self, step: int) -> Origins | None:
        """Return the origins of a step; None if they have been forgotten."""
        return self._origins.get(step)


class SkipLog:
    """Writer of one replica's file. One process per replica has it."""

    def __init__(self, ledger: Path, data_rank: int) -> None:
        """Prepare the file.

        Args:
            ledger: the run's ledger folder; it is created if needed.
            data_rank: the replica.
        """
        self._path = ledger / f"skips-{data_rank}.jsonl"
        ledger.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def write(self, skip: Skip) -> None:
        """Append a line, down to the device."""
        append_records(self._path, [asdict(skip)])


def finite(value: float) -> float | None:
    """Return a number, or None in place of NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def name_samples(sequence: SampleSequence[Any], origins: Origins) -> tuple[SampleName, ...]:
    """Return the names of samples, with the keys of those that can be read again.

    Args:
        sequence: the training sequence.
        origins: origins of the samples; the first `MAX_SAMPLES` are named.
    """
    rows = zip(
        origins.data_set.tolist(), origins.shard_index.tolist(), origins.index.tolist(), strict=True
    )
    reader = SampleReader(sequence)
    try:
        return tuple(
            SampleName(
                data_set=sequence.sources[data_set].name,
                shard=sequence.sources[data_set].manifest.shards[shard_index].file,
                index=index,
                key=_key(reader, data_set, shard_index, index),
            )
            for data_set, shard_index, index in list(rows)[:MAX_SAMPLES]
        )
    finally:
        reader.close()


def read_skips(ledger: Path) -> tuple[Skip, ...]:
    """Return the lines of all replicas in the order of steps, then of positions.

    A step that a run made twice may occur twice. Lines that hold no skip, such as those of a killed
    process, are passed over with a warning.

    Args:
        ledger: the run's ledger folder.
    """
    skips = [
        skip
        for path in sorted(ledger.glob("skips-*.jsonl"))
        for skip in read_records(path, lambda record, name: from_json(record, Skip, name))[0]
    ]
    return tuple(sorted(skips, key=lambda skip: (skip.step, skip.first_position)))


def _key(reader: SampleReader[Any], data_set: int, shard_index: int, index: int) -> str:
    try:
        return reader.sample(data_set, shard_index, index)[KEY].decode("utf-8", "replace")
    except (DamageError, OSError) as error:
        logger.warning("the key of a sample of a skipped update cannot be read: %s", error)
        return ""
