"""Positions become decoded samples: locate, open, fetch, decode, and replace the unusable.

A position names a data set and a position in that data set's own order, which names a sample. A
quarantined or damaged sample is replaced by another, which the position chooses by arithmetic:
every rank that reads the same bytes reads the same samples, and so does a resumed run.

The sequence makes the rows that samples are decoded into; this reader is the same for tokens and
pictures.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

import numpy as np

from ernie_vilg.data.sequence.mixture import MixtureOrder
from ernie_vilg.data.sequence.order import SampleOrder
from ernie_vilg.data.sequence.sample_sequence import ContentT, Rows, SampleSequence
from ernie_vilg.data.shards.cached_folder import open_folder
from ernie_vilg.data.shards.damage import (
    DamagedSampleError,
    DamagedShardError,
    DamageError,
    DamageFinding,
)
from ernie_vilg.data.shards.open_shards import OpenShard, OpenShards, Sample
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Shard

MAX_REPLACEMENTS = 64
"""Draws after which a position has no usable sample."""


@dataclass(frozen=True, kw_only=True)
class Origins:
    """The samples that some positions were given, arrays [samples]."""

    data_set: np.ndarray
    """Index into the sequence's sources, int64."""
    epoch: np.ndarray
    """Number of complete epochs of the data set before the sample, int64."""
    shard_index: np.ndarray
    """Index into the manifest's shards, int64."""
    index: np.ndarray
    """Index of the sample within its shard, int64."""
    is_replaced: np.ndarray
    """True where the position's own sample was unusable, bool."""
    is_damaged: np.ndarray
    """True where the position's own sample is damaged, bool."""


@dataclass(frozen=True, kw_only=True)
class DecodedSamples(Generic[ContentT]):
    """The decoded samples of some positions."""

    content: ContentT
    """Tensors; row r belongs to the r-th position."""
    origins: Origins
    """The sample of each row."""
    findings: tuple[DamageFinding, ...]
    """Damage met on the way, each finding once."""

    def pin_memory(self) -> "DecodedSamples[ContentT]":
        """Return the same samples in pinned memory."""
        pinned: ContentT = self.content.pin_memory()  # type: ignore[assignment]
        return DecodedSamples(content=pinned, origins=self.origins, findings=self.findings)


class SampleReader(Generic[ContentT]):
    """Reads and decodes samples by their positions."""

    def __init__(
        self,
        sequence: SampleSequence[ContentT],
        on_wait: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Open nothing yet.

        Args:
            sequence: the training sequence.
            on_wait: called with the shard's name before each wait for a shard, and with "" after.

        Raises:
            InputError: a location cannot be read with these settings.
        """
        self._sequence = sequence
        self._new_rows = sequence.row_maker()
        self._mixture = MixtureOrder(len(sequence.sources), sequence.mixture, sequence.seed)
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
        self._excluded: dict[tuple[int, int], frozenset[int]] = {}

    def read(self, positions: np.ndarray) -> DecodedSamples[ContentT]:
        """Read the samples of some positions.

        Args:
            positions: positions of the training sequence, int64 [samples], increasing.

        Raises:
            DamagedShardError, DamagedSampleError: with `loader.damage=stop`, a shard differs from
                its manifest, or a sample cannot be used.
            InputError: no usable sample was found for a position.
            OSError: a shard cannot be read.
        """
        data_sets, own_positions = self._mixture.split(positions)
        drawn = [(data_set, data_sets == data_set) for data_set in np.unique(data_sets).tolist()]
        origins = self._locate(data_sets, own_positions, drawn)
        rows = self._new_rows(positions)
        findings: dict[tuple[str, str, int | None], DamageFinding] = {}
        pending = np.arange(len(positions))
        for attempt in range(MAX_REPLACEMENTS + 1):
            failed = []
            for row, finding in self._read_rows(origins, pending, positions, rows):
                failed.append(row)
                origins.is_replaced[row] = True
                if finding is not None:
                    origins.is_damaged[row] = True
                    findings.setdefault(finding.place, finding)
            if not failed:
                break
            for row in failed:
                self._replace(origins, row, int(own_positions[row]), attempt)
            pending = np.array(sorted(failed))
        else:
            raise InputError(
                f"position {positions[pending[0]]} found no usable sample in {MAX_REPLACEMENTS} "
                "draws: too much is damaged or in quarantine, repair the shards or train on others"
            )
        for data_set, rows_of_set in drawn:
            last = int(own_positions[rows_of_set].max())
            self._shards[data_set].open_ahead(self._orders[data_set].shards_of_next_block(last))
        return DecodedSamples(
            content=rows.content(), origins=origins, findings=tuple(findings.values())
        )

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

    def _locate(
        self,
        data_sets: np.ndarray,
        own_positions: np.ndarray,
        drawn: list[tuple[int, np.ndarray]],
    ) -> Origins:
        """Return the own samples of the positions, given the rows of each drawn data set."""
        count = len(data_sets)
        epoch, shard_index, index = (np.empty(count, np.int64) for _ in range(3))
        for data_set, rows in drawn:
            located = self._orders[data_set].locate_all(own_positions[rows])
            epoch[rows], shard_index[rows], index[rows] = located
        return Origins(
            data_set=data_sets,
            epoch=epoch,
            shard_index=shard_index,
            index=index,
            is_replaced=np.zeros(count, bool),
            is_damaged=np.zeros(count, bool),
        )

    def _replace(self, origins: Origins, row: int, own_position: int, attempt: int) -> None:
        order = self._orders[int(origins.data_set[row])]
        replacement = order.replacement(own_position, attempt)
        origins.epoch[row] = replacement.epoch
        origins.shard_index[row] = replacement.shard_index
        origins.index[row] = replacement.index

    def _read_rows(
        self, origins: Origins, pending: np.ndarray, positions: np.ndarray, rows: Rows[ContentT]
    ) -> Iterator[tuple[int, DamageFinding | None]]:
        """Read the pending rows; yield each unusable row, with the damage if it is damaged."""
        opened_of: dict[int, OpenShard] = {}
        failed: dict[int, DamagedSampleError] = {}
        groups = [
            (int(origins.data_set[group[0]]), int(origins.shard_index[group[0]]), group)
            for group in _by_shard(origins, pending)
        ]
        for data_set, shard_index, _ in groups:  # at once; most are open already
            self._shards[data_set].open_ahead([shard_index])
        for data_set, shard_index, group in groups:
            try:
                opened = self._shards[data_set].get(shard_index)
            except DamagedShardError as error:
                shard = self._sequence.sources[data_set].manifest.shards[shard_index]
                first = int(positions[group].min())
                finding = self._finding(error, data_set, shard, first, num_samples=shard.samples)
                yield from ((row, finding) for row in group.tolist())
                continue
            excluded = self._excluded_of(data_set, shard_index, opened)
            usable, unusable = _sort_out(opened, excluded, group, origins.index[group])
            opened_of.update(dict.fromkeys(usable, opened))
            rows.fetch(data_set, opened, [*usable.values()], [*usable])
            for row, damage in unusable.items():
                if damage is None:
                    yield row, None
                else:
                    opened_of[row], failed[row] = opened, damage
        failed.update(rows.decode([row for row in opened_of if row not in failed]))
        for row, damage in failed.items():
            opened, index = opened_of[row], int(origins.index[row])
            data_set, position = int(origins.data_set[row]), int(positions[row])
            yield (
                row,
                self._finding(
                    damage, data_set, opened.shard, position, index=index, key=opened.key(index)
                ),
            )

    def _excluded_of(self, data_set: int, shard_index: int, opened: OpenShard) -> frozenset[int]:
        """Return the indices of a shard's samples that are in quarantine."""
        quarantine = self._sequence.quarantine
        if not quarantine.entries:
            return frozenset()
        place = (data_set, shard_index)
        if place not in self._excluded:
            self._excluded[place] = quarantine.indices_in(
                self._sequence.sources[data_set].name,
                opened.shard.file,
                [*map(opened.key, range(len(opened.index.keys)))],
                opened.location,
            )
        return self._excluded[place]

    def _finding(
        self,
        error: DamageError,
        data_set: int,
        shard: Shard,
        position: int,
        *,
        num_samples: int = 1,
        index: int | None = None,
        key: str = "",
    ) -> DamageFinding:
        """Describe damage, or raise its error where damage ends the run."""
        if self._sequence.loader.damage == "stop":
            raise error
        return DamageFinding(
            data_set=self._sequence.sources[data_set].name,
            shard=shard.file,
            index=index,
            key=key,
            num_samples=num_samples,
            reason=error.reason,
            detail=str(error),
            position=position,
        )


def _sort_out(
    opened: OpenShard, excluded: frozenset[int], group: np.ndarray, indices: np.ndarray
) -> tuple[dict[int, int], dict[int, DamagedSampleError | None]]:
    """Return the index of each usable row, and the error of each other one, None in quarantine."""
    usable = dict(zip(group.tolist(), indices.tolist(), strict=True))
    if not excluded and not opened.index.problems:
        return usable, {}
    unusable = {
        row: None if index in excluded else opened.problem(index)
        for row, index in usable.items()
        if index in excluded or index in opened.index.problems
    }
    return {row: index for row, index in usable.items() if row not in unusable}, unusable


def _by_shard(origins: Origins, pending: np.ndarray) -> list[np.ndarray]:
    """Return the pending rows shard by shard, each in the order of the file.

    Reads then go forward through a file.
    """
    order = np.lexsort(
        (origins.index[pending], origins.shard_index[pending], origins.data_set[pending])
    )
    rows = pending[order]
    changes = (np.diff(origins.shard_index[rows]) != 0) | (np.diff(origins.data_set[rows]) != 0)
    return [group for group in np.split(rows, np.flatnonzero(changes) + 1) if len(group)]
