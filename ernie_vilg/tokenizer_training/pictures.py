"""The pictures of an image tokenizer's run: their order, micro-batches, and held-out ones."""

import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.data import ONLY_DATA_SET
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.data.batches.image_batches import ImageBatches, ImageSequence
from ernie_vilg.data.records.damage_log import DamageLog, read_damage
from ernie_vilg.data.records.skipped_updates import RecentOrigins
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.damage import DamageFinding
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.shard_manifest import Manifest

_HELD_OUT_DATA_SET = "held_out"

logger = logging.getLogger(__name__)


def training_source(config: TrainImageTokenizerConfig, manifest: Manifest) -> DataSource:
    """Return the data set of a run.

    Args:
        config: the run.
        manifest: manifest of `config.shards`.
    """
    return DataSource(name=ONLY_DATA_SET, location=config.shards, manifest=manifest)


def image_sequence(
    config: TrainImageTokenizerConfig, source: DataSource, quarantine: Quarantine
) -> ImageSequence:
    """Return the order of the pictures of a run.

    Args:
        config: the run.
        source: its data set.
        quarantine: pictures that the run excludes.
    """
    return ImageSequence(
        sources=(source,),
        mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
        seed=config.training.seed,
        shuffle_block_shards=config.training.shuffle_block_shards,
        quarantine=quarantine,
        loader=config.loader,
        image_size=config.image_tokenizer.image_size,
        horizontal_flip=config.training.horizontal_flip,
        cache_bytes=config.training.image_cache_bytes,
    )


class PictureBatches:
    """The micro-batches of one rank."""

    def __init__(
        self,
        config: TrainImageTokenizerConfig,
        sequence: ImageSequence,
        groups: Groups,
        recent: RecentOrigins,
    ) -> None:
        """Prepare to read.

        Args:
            config: the run.
            sequence: the order of its pictures.
            groups: this rank's position.
            recent: keeps the origins of each step's pictures.

        Raises:
            InputError: the shards cannot be read with these settings.
        """
        ledger = RunFolder(Path(config.run_dir)).ledger
        self._micro_batch_size = config.micro_batch_size(groups.world_size)
        self._batches = ImageBatches(
            sequence,
            ReplicaSlice(
                batch_sizes=config.batch_sizes,
                data_rank=groups.data_rank,
                data_size=groups.data_size,
            ),
            known_damage=read_damage(ledger).findings,
            on_damage=DamageLog(ledger, groups.data_rank).write,
            on_origins=recent.remember,
            pin_memory=groups.device.type == "cuda",
        )

    def at(self, step: int) -> list[Tensor]:
        """Return this rank's micro-batches of a step, uint8 [batch, 3, height, width] each.

        Args:
            step: from 1. Steps in order are read ahead.

        Raises:
            InputError, TimeoutError, RuntimeError: as `StepSamples.at`.
        """
        return list(self._batches.at(step).split(self._micro_batch_size))

    @property
    def doing(self) -> str:
        """Activity of the workers, with the shards they wait for; any thread may ask."""
        return self._batches.doing

    def close(self) -> None:
        """End the workers and close every file."""
        self._batches.close()


class EvaluationPictures:
    """The pictures on which a run is evaluated, cut at the centre, the same in every evaluation."""

    def __init__(
        self,
        config: TrainImageTokenizerConfig,
        sequence: ImageSequence,
        held_out: Manifest | None,
    ) -> None:
        """Prepare to read.

        Args:
            config: the run.
            sequence: the order of its training pictures.
            held_out: manifest of `config.reconstructions.shards`; None takes training pictures.
        """
        if held_out is not None:
            location = config.reconstructions.shards
            assert location is not None, "the manifest is that of held-out shards"
            source = DataSource(name=_HELD_OUT_DATA_SET, location=location, manifest=held_out)
            sequence = image_sequence(config, source, Quarantine())
        # An evaluation reads in the rank itself: workers would idle between two of them.
        loader = replace(sequence.loader, num_workers=0)
        sequence = replace(sequence, loader=loader, cache_bytes=0)
        self.is_held_out = held_out is not None
        """Whether the run does not train on them."""
        self.count = min(config.reconstructions.pictures, sequence.sources[0].manifest.num_samples)
        """Number of pictures."""
        self._batches = ImageBatches(
            sequence,
            ReplicaSlice(batch_sizes=BatchSizes(full=1), data_rank=0, data_size=1),
            on_damage=_warn,
        )

    def at(self, first: int, count: int) -> Tensor:
        """Return some of the pictures, uint8 [count, 3, height, width].

        Args:
            first: index of the first one, from 0.
            count: number of pictures.

        Raises:
            InputError: a shard differs from the manifest, or a picture cannot be used; or, with
                `loader.damage=skip`, too many cannot.
        """
        return self._batches.for_evaluation(first, count)

    def close(self) -> None:
        """Close every file."""
        self._batches.close()


def _warn(findings: list[DamageFinding]) -> None:
    """Name damaged pictures of an evaluation, which has no damage log."""
    for finding in findings:
        logger.warning("evaluation: another picture replaces a damaged one: %s", finding)
