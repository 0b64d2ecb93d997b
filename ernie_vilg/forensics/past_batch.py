"""A batch of a past step, read again as it was read then.

Samples that were in quarantine are excluded. The run's own log decides about damage: a shard that
was repaired later still counts as damaged for the steps that met the damage. If something is
damaged now that was intact then, the samples that replace it are uncertain.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.captions import chosen_captions, max_captions_of
from ernie_vilg.data.batches.npy import parse_npy
from ernie_vilg.data.batches.token_batches import Batch, TokenSequence
from ernie_vilg.data.records.damage_log import DamageSummary
from ernie_vilg.data.records.ledger import (
    DataSetRecord,
    StepRecord,
    read_past_quarantine,
)
from ernie_vilg.data.sequence.mixture import MixtureOrder
from ernie_vilg.data.sequence.order import SampleLocation, SampleOrder
from ernie_vilg.data.sequence.quarantine import (
    Quarantine,
    QuarantineEntry,
    read_quarantine,
)
from ernie_vilg.data.sequence.sample_reader import DecodedSamples, SampleReader
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.damage import DamagedSampleError, DamagedShardError, DamageFinding
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.locations import shown
from ernie_vilg.storage.remote import TransferLimits
from ernie_vilg.storage.shard_manifest import read_manifest_at
from ernie_vilg.vocabulary import END_OF_TEXT_ID

_MOST_ROUNDS = 64


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Present locations of a run's data that has moved."""

    token_shards: Mapping[str, str]
    """Folder or URL of token shards by the name of the data set."""
    text_tokenizer: str | None = None
    """Folder of the text tokenizer."""
    image_tokenizer: str | None = None
    """Folder of the image tokenizer's weights."""
    cache_dir: str | None = None
    """Folder for copies of remote shards."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A sample whose position was given to another one."""

    key: str
    """Key of the sample; empty where its shard cannot be read."""
    shard: str
    """File of the shard."""
    index: int
    """Index of the sample in its shard."""
    reason: str
    """Reason for its exclusion, for people."""


class PastBatch:
    """The batch of a step, and its open shards; close it after use."""

    def __init__(self, sequence: TokenSequence, record: StepRecord, found: DamageSummary) -> None:
        """Read the batch.

        If the run never met damage, present damage is an error: the shard should be restored first.

        Args:
            sequence: the record's sequence, with the quarantine of that time.
            record: the record of the step.
            found: all damage that the run met.

        Raises:
            InputError: a shard is damaged, and the run never met damage.
        """
        damage: Literal["stop", "skip"] = "skip" if found.findings else "stop"
        self._sequence = replace(sequence, loader=replace(sequence.loader, damage=damage))
        self._mixture = MixtureOrder(len(sequence.sources), sequence.mixture, sequence.seed)
        self._orders = [
            SampleOrder(source.manifest, sequence.seed, sequence.shuffle_block_shards)
            for source in sequence.sources
        ]
        self.positions = record.first_position + np.arange(record.num_positions, dtype=np.int64)
        _, self._own_positions = self._mixture.split(self.positions)
        self._known = [
            finding for finding in found.findings if finding.position <= self.positions[-1]
        ]
        self._reader, self.rows = self._read()
        self._new = [finding for finding in self.rows.findings if not _covers(self._known, finding)]

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def source(self, row: int) -> DataSource:
        """Return the data set of a sample of the batch."""
        return self._sequence.sources[self._data_set(row)]

    def place(self, row: int) -> SampleLocation:
        """Return the location of a sample of the batch within its data set."""
        places = self.rows.origins
        return SampleLocation(
            epoch=int(places.epoch[row]),
            shard_index=int(places.shard_index[row]),
            index=int(places.index[row]),
        )

    def members(self, row: int) -> Sample:
        """Read all members of a sample of the batch."""
        place = self.place(row)
        return self._reader.sample(self._data_set(row), place.shard_index, place.index)

    def caption_index(self, row: int) -> int:
        """Return which of its captions a sample of the batch was read with; 0 for the only one.

        Raises:
            InputError: the sample's text is no array.
        """
        if max_captions_of(self.source(row).manifest) == 1:
            return 0
        num_captions = np.count_nonzero(parse_npy(self.members(row)["text.npy"]) == END_OF_TEXT_ID)
        position = self.positions[row : row + 1]
        return int(chosen_captions(self._sequence.seed, position, np.array([num_captions + 1]))[0])

    def left_out(self, row: int) -> LeftOut | None:
        """Return the sample that a sample of the batch replaces; None if it replaces none."""
        if not self.rows.origins.is_replaced[row]:
            return None
        source, own = self.source(row), next(self._passed_over(row))
        shard = source.manifest.shards[own.shard_index].file
        finding = _finding_at([*self._known, *self.rows.findings], source.name, shard, own.index)
        try:
            sample = self._reader.sample(self._data_set(row), own.shard_index, own.index)
            key = sample[KEY].decode("utf-8", "replace")
        except (DamagedShardError, DamagedSampleError):
            key = "" if finding is None else finding.key
        reason = self._quarantine_reason(source.name, shard, key)
        if reason is None:
            reason = "damaged" if finding is None else f"damaged ({finding.reason})"
        return LeftOut(key=key, shard=shard, index=own.index, reason=reason)

    def doubt(self, row: int) -> str:
        """Return why another sample may have been trained on; empty where the sample is certain."""
        if not self.rows.origins.is_replaced[row]:
            return ""
        source = self.source(row)
        for place in self._passed_over(row):
            shard = source.manifest.shards[place.shard_index].file
            finding = _finding_at(self._new, source.name, shard, place.index)
            if finding is not None:
                return f"damage that the run had not met by then: {finding.detail}"
        return ""

    def _data_set(self, row: int) -> int:
        return int(self.rows.origins.data_set[row])

    def _read(self) -> tuple[SampleReader[Batch], DecodedSamples[Batch]]:
        """Read until the batch holds no sample that the run had found damaged."""
        sequence = self._sequence
        for _ in range(_MOST_ROUNDS):
            reader = SampleReader(sequence)
            try:
                rows = reader.read(self.positions)
                repaired = self._repaired(reader, rows)
            except BaseException:
                reader.close()
                raise
            if not repaired:
                return reader, rows
            reader.close()
            entries = (*sequence.quarantine.entries, *repaired)
            sequence = replace(sequence, quarantine=Quarantine(entries=entries))
        raise InputError(
            f"positions {self.positions[0]} to {self.positions[-1]} cannot be read as they were: "
            f"after {_MOST_ROUNDS} rounds there still are samples that the run found damaged"
        )

    def _repaired(
        self, reader: SampleReader[Batch], rows: DecodedSamples[Batch]
    ) -> list[QuarantineEntry]:
        """Return the samples that the run found damaged, and that can be read now."""
        if not self._known:
            return []
        repaired = []
        places = (rows.origins.data_set, rows.origins.shard_index, rows.origins.index)
        for data_set, shard_index, index in zip(*(of.tolist() for of in places), strict=True):
            source = self._sequence.sources[data_set]
            shard = source.manifest.shards[shard_index].file
            if _finding_at(self._known, source.name, shard, index) is not None:
                key = reader.sample(data_set, shard_index, index)[KEY].decode("utf-8", "replace")
                repaired.append(QuarantineEntry(key=key, shard=shard, data_set=source.name))
        return repaired

    def _passed_over(self, row: int) -> Iterator[SampleLocation]:
        """Yield the unusable samples drawn for a replaced position, its own one first."""
        order, position = self._orders[self._data_set(row)], int(self._own_positions[row])
        place, attempt = order.locate(position), 0
        yield place
        while (place := order.replacement(position, attempt)) != self.place(row):
            attempt += 1
            yield place

    def _quarantine_reason(self, data_set: str, shard: str, key: str) -> str | None:
        for entry in self._sequence.quarantine.entries:
            is_named = entry.key == key and entry.shard in (None, shard)
            if is_named and entry.data_set in (None, data_set):
                return f"in quarantine: {entry.reason}" if entry.reason else "in quarantine"
        return None


def past_quarantine(run_dir: Path, record: StepRecord) -> tuple[Quarantine, tuple[str, ...]]:
    """Return the quarantine of a step, and reasons why it is uncertain."""
    try:
        return read_past_quarantine(RunFolder(run_dir).ledger, record.quarantine), ()
    except InputError as error:
        present = read_quarantine(RunFolder(run_dir).quarantine)
        if present.digest().startswith(record.quarantine):
            return present, ()
        doubt = f"the quarantine of that time is missing, the present one was used instead: {error}"
        return present, (doubt,)


def past_sequence(
    record: StepRecord, config: PretrainConfig, moved: Moved, quarantine: Quarantine
) -> TokenSequence:
    """Return the sequence that the step's batch was cut from."""
    names = [data_set.name for data_set in record.data_sets]
    unknown = sorted(set(moved.token_shards) - set(names))
    if unknown:
        raise InputError(
            f"token_shards names {', '.join(unknown)}: the run's data sets are {', '.join(names)}"
        )
    loader = config.data.loader
    if moved.cache_dir is not None:
        loader = replace(loader, cache_dir=moved.cache_dir)
    return TokenSequence(
        sources=tuple(
            _source(data_set, moved.token_shards.get(data_set.name), loader)
            for data_set in record.data_sets
        ),
        mixture=record.mixture,
        seed=record.seed,
        shuffle_block_shards=record.shuffle_block_shards,
        quarantine=quarantine,
        loader=loader,
        model=config.model,
        with_pixels=config.model.reconstructor.is_end_to_end,
    )


def _source(data_set: DataSetRecord, location: str | None, loader: LoaderConfig) -> DataSource:
    """Return a data set of the run, checked against its recorded manifest."""
    name, where = data_set.name, location or data_set.location
    hint = f"say where they are with +token_shards.{name}=FOLDER"
    try:
        manifest = read_manifest_at(
            where, "token", TransferLimits(max_attempts=loader.max_attempts)
        )
    except (InputError, ImportError, OSError) as error:
        raise InputError(f"the run's shards {name!r} cannot be read, {hint} ({error})") from error
    if manifest.digest() != data_set.manifest:
        raise InputError(
            f"{shown(where)} does not hold the shards {name!r} that the run read (manifest "
            f"{manifest.digest()[:16]}, not {data_set.manifest[:16]}): restore them, or {hint}"
        )
    return DataSource(name=name, location=where, manifest=manifest)


def _finding_at(
    findings: list[DamageFinding], data_set: str, shard: str, index: int
) -> DamageFinding | None:
    """Return the finding about a sample or its shard, if there is one."""
    for finding in findings:
        if (finding.data_set, finding.shard) == (data_set, shard) and finding.index in (
            None,
            index,
        ):
            return finding
    return None


def _covers(known: list[DamageFinding], finding: DamageFinding) -> bool:
    """Return whether the damage of a finding was known."""
    return any(
        (other.data_set, other.shard) == (finding.data_set, finding.shard)
        and other.index in (None, finding.index)
        for other in known
    )
