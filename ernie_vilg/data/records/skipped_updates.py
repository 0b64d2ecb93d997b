"""The updates that a run left out, and which samples they would have been made of.

`ledger/skips-<data rank>.jsonl` in the run folder has one line per update and replica. A line names
the replica's samples in the words of `quarantine.jsonl`, so that a sample that turns out to be bad
can be put there as it stands.

Source: ours.
"""

import logging
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

from ernie_vilg.config.schema import from_json
from ernie_vilg.data.batches.token_batches import Batch, TokenSequence
from ernie_vilg.data.sequence.sample_reader import Origins, SampleReader
from ernie_vilg.data.shards.damage import DamageError
from ernie_vilg.data.shards.open_shards import KEY
from ernie_vilg.storage.jsonl import append_records, read_records

MAX_SAMPLES = 256
"""Samples that one line names; of larger shares the first ones."""

_REMEMBERED = 8  # steps; verdicts come one step late at most

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleName:
    """One sample of an update."""

    data_set: str
    """Name within the run."""
    shard: str
    """File of its shard."""
    index: int
    """Within its shard."""
    key: str
    """Its key; empty where the shard could not be read again."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """One replica's part in an update that was left out."""

    step: int
    """The update, counted from 1."""
    reason: str
    """nan, inf or spike."""
    loss: float | None
    """Mean over the global batch; None where it is not finite."""
    limit: float | None
    """Above which it would have been a spike; None while there was no limit."""
    gradient_norm: float | None
    """Of the whole gradient; None where it is not finite."""
    ranks: tuple[int, ...]
    """Whose loss or gradients were not finite."""
    first_position: int
    """Of the replica's samples in the training sequence."""
    num_positions: int
    """Consecutive ones."""
    samples: tuple[SampleName, ...]
    """What stood there, at most `MAX_SAMPLES`; none where it is not known."""


class RecentOrigins:
    """The origins of the samples of the last steps, on one rank."""

    def __init__(self) -> None:
        self._origins: OrderedDict[int, Origins] = OrderedDict()

    def remember(self, step: int, origins: Origins) -> None:
        """Keep the origins of a step, and forget old ones."""
        self._origins[step] = origins
        self._origins.move_to_end(step)
        while len(self._origins) > _REMEMBERED:
            self._origins.popitem(last=False)

    def at(self, step: int) -> Origins | None:
        """Return the origins of a step; None if it is too long ago."""
        return self._origins.get(step)


class SkipLog:
    """The file of one replica; one of its processes writes it."""

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
        """Add a line, down to the device."""
        append_records(self._path, [asdict(skip)])


def finite(value: float) -> float | None:
    """Return a number that JSON has, None where it has none for it."""
    return value if math.isfinite(value) else None


def name_samples(sequence: TokenSequence, origins: Origins) -> tuple[SampleName, ...]:
    """Return the names of samples, read again from their shards where that is possible.

    Args:
        sequence: the training sequence.
        origins: origins of some samples; the first `MAX_SAMPLES` are named.
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

    A step that a run took twice may be there twice. Lines that hold no skip, as a killed process
    leaves them, are passed over with a warning.
    """
    skips = [
        skip
        for path in sorted(ledger.glob("skips-*.jsonl"))
        for skip in read_records(path, lambda record, name: from_json(record, Skip, name))[0]
    ]
    return tuple(sorted(skips, key=lambda skip: (skip.step, skip.first_position)))


def _key(reader: SampleReader[Batch], data_set: int, shard_index: int, index: int) -> str:
    try:
        return reader.sample(data_set, shard_index, index)[KEY].decode("utf-8", "replace")
    except (DamageError, OSError) as error:
        logger.warning("a sample of an update that was left out has no key: %s", error)
        return ""
