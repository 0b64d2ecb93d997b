"""From positions of an endless sequence to samples of shards, with replacements where it must be.

A position names a data set and a place in that data set's own order, which names a sample. Where
that sample is in quarantine or damaged, the position draws another, by arithmetic: every rank that
reads the same bytes reads the same samples, and so does a run that resumes.

What a sample becomes is the business of the `RowDecoder` that is passed in. It first fetches bytes
shard by shard, then decodes all of them at once.

Source: ours.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.sequence.mixture import MixtureOrder, MixturePhase
from ernie_vilg.data.sequence.order import SampleOrder
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.shards.damage import (
    DamagedSampleError,
    DamagedShardError,
    DamageError,
    DamageFinding,
    DamageLimits,
)
from ernie_vilg.data.shards.open_shards import OpenShard, OpenShards, Sample
from ernie_vilg.data.shards.shard_folder import open_folder
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest, Shard

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 64
"""Draws after which a position has no usable sample."""


class RowDecoder(Protocol):
    """Turns samples into rows of arrays; row r belongs to the r-th position."""

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        """Read the bytes of samples of one shard for these rows."""

    def decode(self, rows: list[int]) -> Mapping[int, DamagedSampleError]:
        """Decode what was fetched; return the rows that cannot be used, with the reason."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One data set of a run."""

    name: str
    """Within the run: "main", or its key in data.mixture."""
    location: str
    """Folder or URL of its shards."""
    manifest: Manifest
    """Of the location."""


@dataclass(frozen=True, kw_only=True)
class SampleSequence:
    """All that decides which sample stands where, and how it is read; travels to other processes.

    With one data set the mixture is that data set.
    """

    sources: tuple[DataSource, ...]
    """The data sets."""
    phases: tuple[MixturePhase, ...]
    """How they are mixed."""
    seed: int
    """Names the order."""
    shuffle_block_shards: int
    """Shards whose samples are shuffled together."""
    quarantine: Quarantine
    """Samples to leave out."""
    loader: LoaderConfig
    """How to read, and what to do about damage."""

    def __post_init__(self) -> None:
        if self.loader.cache_dir is None:
            return
        # What is open keeps its place on the disk, whatever the cache has given up.
        needed = sum(
            sum(sorted(map(_cached_bytes, source.manifest.shards))[-self.max_open :])
            for source in self.sources
        )
        if needed > self.loader.cache_bytes:
            raise InputError(
                f"loader.cache_bytes={self.loader.cache_bytes} with shuffle_block_shards="
                f"{self.shuffle_block_shards}: this block's shards and the next one's have up to "
                f"{needed} bytes, allow that many, or shuffle fewer shards together"
            )

    @property
    def max_open(self) -> int:
        """Shards of a data set that a reader has open: two blocks, and a border between them."""
        return 2 * self.shuffle_block_shards + 2

    @property
    def damage_limits(self) -> DamageLimits:
        """How much finding a reader of the sequence bears."""
        num_samples = sum(source.manifest.num_samples for source in self.sources)
        return DamageLimits(
            max_consecutive=self.loader.max_consecutive_damaged,
            max_samples=int(self.loader.max_damaged_fraction * num_samples),
        )


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the samples of some positions were read, arrays [samples]."""

    data_set: np.ndarray
    """Index into the sequence's sources, int64."""
    epoch: np.ndarray
    """Epoch of the data set, int64."""
    shard_index: np.ndarray
    """Index into the manifest's shards, int64."""
    index: np.ndarray
    """Index of the sample within its shard, int64."""
    is_replaced: np.ndarray
    """Whether the position's own sample was left out, bool."""
    is_damaged: np.ndarray
    """Whether it was left out because it is damaged, bool."""


class PositionReader:
    """Finds and opens what stands at positions."""

    def __init__(self, sequence: SampleSequence, on_wait: Callable[[str], None]) -> None:
        """Open nothing yet.

        Args:
            sequence: what stands where.
            on_wait: told what is being waited for before each wait for a shard, and "" after.

        Raises:
            InputError: a location cannot be read with these settings.
        """
        self._sequence = sequence
        self._mixture = MixtureOrder(len(sequence.sources), sequence.phases, sequence.seed)
        self._orders = [
            SampleOrder(source.manifest, sequence.seed, sequence.shuffle_block_shards)
            for source in sequence.sources
        ]
        self._shards = [
            OpenShards(
                open_folder(source.location, sequence.loader),
                source.manifest,
                max_open=sequence.max_open,
                on_wait=on_wait,
            )
            for source in sequence.sources
        ]
        self._left_out: dict[tuple[int, int], frozenset[int]] = {}

    def read(
        self, positions: np.ndarray, decoder: RowDecoder
    ) -> tuple[Places, tuple[DamageFinding, ...]]:
        """Have the samples of some positions decoded.

        Args:
            positions: of the sequence, int64 [samples], increasing.
            decoder: takes each sample; row r belongs to `positions[r]`.

        Returns:
            where the samples come from, and the damage that was met, each finding once.

        Raises:
            DamagedShardError, DamagedSampleError: with `loader.damage=stop`, a shard differs from
                its manifest, or the decoder refused a sample.
            InputError: no usable sample was found for a position.
            OSError: a shard cannot be read.
        """
        data_sets, own_positions = self._mixture.split(positions)
        places = self._locate(data_sets, own_positions)
        findings: dict[tuple[str, str, int | None], DamageFinding] = {}
        pending = np.arange(len(positions))
        for attempt in range(MAX_REPLACEMENTS + 1):
            failed = []
            for row, finding in self._read_rows(places, pending, positions, decoder):
                failed.append(row)
                places.is_replaced[row] = True
                if finding is not None:
                    places.is_damaged[row] = True
                    findings.setdefault(finding.place, finding)
            if not failed:
                break
            for row in failed:
                self._replace(places, row, int(own_positions[row]), attempt)
            pending = np.array(sorted(failed))
        else:
            raise InputError(
                f"position {positions[pending[0]]} found no usable sample in {MAX_REPLACEMENTS} "
                "draws: too much is damaged or in quarantine, repair the shards or train on others"
            )
        self._open_ahead(data_sets, own_positions)
        return places, tuple(findings.values())

    def sample(self, data_set: int, shard_index: int, index: int) -> Sample:
        """Read all members of one sample.

        Raises:
            DamagedShardError, DamagedSampleError: it cannot be used.
        """
        return self._shards[data_set].get(shard_index).sample(index)

    def close(self) -> None:
        """Close every file and end every thread."""
        for shards in self._shards:
            shards.close()

    def _locate(self, data_sets: np.ndarray, own_positions: np.ndarray) -> Places:
        count = len(data_sets)
        epoch, shard_index, index = (np.empty(count, np.int64) for _ in range(3))
        for data_set in np.unique(data_sets).tolist():
            rows = data_sets == data_set
            found = self._orders[data_set].locate_all(own_positions[rows])
            epoch[rows], shard_index[rows] = found.epoch, found.shard_index
            index[rows] = found.index
        return Places(
            data_set=data_sets,
            epoch=epoch,
            shard_index=shard_index,
            index=index,
            is_replaced=np.zeros(count, bool),
            is_damaged=np.zeros(count, bool),
        )

    def _replace(self, places: Places, row: int, own_position: int, attempt: int) -> None:
        order = self._orders[int(places.data_set[row])]
        replacement = order.replacement(own_position, attempt)
        places.epoch[row] = replacement.epoch
        places.shard_index[row] = replacement.shard_index
        places.index[row] = replacement.index

    def _read_rows(
        self, places: Places, pending: np.ndarray, positions: np.ndarray, decoder: RowDecoder
    ) -> Iterator[tuple[int, DamageFinding | None]]:
        """Read the pending rows; yield those that could not be, with the damage if it is one."""
        opened_of: dict[int, OpenShard] = {}
        failed: dict[int, DamagedSampleError] = {}
        groups = [
            (int(places.data_set[rows[0]]), int(places.shard_index[rows[0]]), rows)
            for rows in _by_shard(places, pending)
        ]
        for data_set, shard_index, _ in groups:  # all at once, of which most are open already
            self._shards[data_set].open_ahead([shard_index])
        for data_set, shard_index, group in groups:
            try:
                opened = self._shards[data_set].get(shard_index)
            except DamagedShardError as error:
                finding = self._damaged_shard(
                    data_set, shard_index, int(positions[group].min()), error
                )
                yield from ((row, finding) for row in group.tolist())
                continue
            left_out = self._left_out_of(data_set, shard_index, opened)
            usable, unusable = _sort_out(opened, left_out, group, places.index[group])
            opened_of.update(dict.fromkeys(usable, opened))
            decoder.fetch(data_set, opened, [*usable.values()], [*usable])
            for row, damage in unusable.items():
                if damage is None:
                    yield row, None
                else:
                    opened_of[row], failed[row] = opened, damage
        failed.update(decoder.decode([row for row in opened_of if row not in failed]))
        for row, damage in failed.items():
            data_set, index = int(places.data_set[row]), int(places.index[row])
            position = int(positions[row])
            yield row, self._damaged_sample(data_set, opened_of[row], index, position, damage)

    def _left_out_of(self, data_set: int, shard_index: int, opened: OpenShard) -> frozenset[int]:
        """Return the indices of a shard's samples that are in quarantine."""
        quarantine = self._sequence.quarantine
        if not quarantine.entries:
            return frozenset()
        place = (data_set, shard_index)
        if place not in self._left_out:
            name, shard = self._sequence.sources[data_set].name, opened.shard.file
            keys = {
                index: key
                for index, key in enumerate(map(opened.key, range(len(opened.index.keys))))
                if quarantine.holds(name, shard, key)
            }
            for entry in quarantine.without_sample(name, shard, keys.values()):
                logger.warning(
                    "quarantine leaves nothing out by its line of %s: %s has no such key; correct "
                    "the line",
                    entry,
                    opened.location,
                )
            self._left_out[place] = frozenset(keys)
        return self._left_out[place]

    def _damaged_shard(
        self, data_set: int, shard_index: int, position: int, error: DamagedShardError
    ) -> DamageFinding:
        self._stop_if_asked(error)
        source = self._sequence.sources[data_set]
        shard = source.manifest.shards[shard_index]
        return DamageFinding(
            data_set=source.name,
            shard=shard.file,
            index=None,
            key="",
            num_samples=shard.samples,
            reason=error.reason,
            detail=str(error),
            position=position,
        )

    def _damaged_sample(
        self,
        data_set: int,
        opened: OpenShard,
        index: int,
        position: int,
        error: DamagedSampleError,
    ) -> DamageFinding:
        self._stop_if_asked(error)
        return DamageFinding(
            data_set=self._sequence.sources[data_set].name,
            shard=opened.shard.file,
            index=index,
            key=opened.key(index),
            num_samples=1,
            reason=error.reason,
            detail=str(error),
            position=position,
        )

    def _stop_if_asked(self, error: DamageError) -> None:
        if self._sequence.loader.damage == "stop":
            raise error

    def _open_ahead(self, data_sets: np.ndarray, own_positions: np.ndarray) -> None:
        """Have the shards of every data set's next block opened."""
        for data_set in np.unique(data_sets).tolist():
            last = int(own_positions[data_sets == data_set].max())
            self._shards[data_set].open_ahead(self._orders[data_set].shards_of_next_block(last))


def _cached_bytes(shard: Shard) -> int:
    return sum(stored.bytes for stored in shard.files)


def _sort_out(
    opened: OpenShard, left_out: frozenset[int], group: np.ndarray, indices: np.ndarray
) -> tuple[dict[int, int], dict[int, DamagedSampleError | None]]:
    """Return the index of each usable row, and why each other one is not; None is quarantine."""
    usable = dict(zip(group.tolist(), indices.tolist(), strict=True))
    if not left_out and not opened.index.problems:
        return usable, {}
    unusable = {
        row: None if index in left_out else opened.problem(index)
        for row, index in usable.items()
        if index in left_out or index in opened.index.problems
    }
    return {row: index for row, index in usable.items() if row not in unusable}, unusable


def _by_shard(places: Places, pending: np.ndarray) -> list[np.ndarray]:
    """Return the pending rows shard by shard, each in the order of the file.

    Reads then go forward through a file.
    """
    order = np.lexsort(
        (places.index[pending], places.shard_index[pending], places.data_set[pending])
    )
    rows = pending[order]
    changes = (np.diff(places.shard_index[rows]) != 0) | (np.diff(places.data_set[rows]) != 0)
    return [group for group in np.split(rows, np.flatnonzero(changes) + 1) if len(group)]
