"""The micro-batches of one replica, step by step, with a record of damage and a comparison.

All tensor and pipeline ranks of a replica read the same samples, each for itself. Where damaged
samples are replaced (`loader.damage=skip`), they compare their samples in every step: a disk or a
cache that fails on one node only would otherwise make a replica train on a mixture of two batches.
"""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.batches.token_batches import Batch, TokenSequence
from ernie_vilg.data.records.damage_log import DamageLog, read_damage
from ernie_vilg.data.records.skipped_updates import RecentOrigins
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine, read_quarantine
from ernie_vilg.data.sequence.sample_reader import Origins
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.damage import DamageFinding
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.layout.collectives import LEADER, gather_everywhere
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)


class ReplicaBatches:
    """The micro-batches of this rank's replica."""

    def __init__(
        self,
        config: PretrainConfig,
        sequence: TokenSequence,
        groups: Groups,
        recent: RecentOrigins | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            config: the run.
            sequence: the training sequence.
            groups: this rank's process groups.
            recent: keeps the origins of each step's samples.

        Raises:
            InputError: the shards cannot be read with these settings.
        """
        ledger = RunFolder(Path(config.run_dir)).ledger
        self._micro_batch_size = config.parallelism.micro_batch_size
        self._hands_out_pixels = is_last_stage(groups)  # it alone reconstructs pictures
        self._data_rank = groups.data_rank
        self._recent = recent
        replica_size = groups.tensor_size * groups.pipeline_size
        self._must_agree = config.data.loader.damage == "skip" and replica_size > 1
        is_writer = groups.tensor_rank == 0 and groups.pipeline_rank == 0
        self._log = DamageLog(ledger, groups.data_rank) if is_writer else None
        self._steps = StepSamples(
            sequence,
            ReplicaSlice(
                batch_sizes=config.batch_sizes,
                data_rank=groups.data_rank,
                data_size=groups.data_size,
            ),
            known_damage=read_damage(ledger).findings,
            on_damage=self._write_down,
        )

    def at(self, step: int) -> list[Batch]:
        """Return this replica's micro-batches of a step; where ranks compare, all must call.

        Args:
            step: from 1. Steps in order are read ahead.

        Raises:
            InputError: a shard differs from the manifest, or a sample from the model's sizes; with
                `loader.damage=skip`, too many do, or ranks of a replica read different samples.
            TimeoutError: reading stalls; the message names the shard.
            RuntimeError: a worker died.
        """
        samples = self._steps.at(step)
        if self._recent is not None:
            self._recent.remember(step, samples.origins)
        if self._must_agree:
            self._compare(step, samples.origins)
        return samples.content.split(self._micro_batch_size, with_pixels=self._hands_out_pixels)

    @property
    def doing(self) -> str:
        """Activity of the workers, with the shards they wait for; any thread may ask."""
        return self._steps.doing

    def close(self) -> None:
        """End the workers and close every file."""
        self._steps.close()

    def _write_down(self, findings: list[DamageFinding]) -> None:
        if self._log is not None:
            self._log.write(findings)

    def _compare(self, step: int, origins: Origins) -> None:
        content = np.stack([origins.data_set, origins.shard_index, origins.index]).tobytes()
        read = gather_everywhere((self._data_rank, zlib.crc32(content)))
        for data_rank in sorted({rank for rank, _ in read}):
            if len({digest for rank, digest in read if rank == data_rank}) > 1:
                raise InputError(
                    f"the ranks of replica {data_rank} read different samples in step {step}: only "
                    "some of them find damage, look for the shard in ledger/damage-*.jsonl and for "
                    "a failing disk or cache on one node"
                )


def agreed_quarantine(run_dir: Path, sources: Sequence[DataSource]) -> Quarantine:
    """Read the run's quarantine; all ranks must call. The leader logs how much it can exclude.

    Args:
        run_dir: the run's folder.
        sources: the run's data sets, for the check of the lines.

    Raises:
        InputError: a line is malformed, or ranks read different files.
    """
    path = RunFolder(run_dir).quarantine
    quarantine = read_quarantine(path)
    if len(set(gather_everywhere(quarantine.digest()))) > 1:
        raise InputError(
            f"{path} differs between ranks: it was changed while the run started, or run_dir is "
            "not on a file system that all nodes share; start again"
        )
    if quarantine.entries and dist.get_rank() == LEADER:
        shards = {source.name: {each.file for each in source.manifest.shards} for source in sources}
        idle = quarantine.not_in(shards)
        for entry, reason in idle.items():
            logger.warning(
                "%s: the line of %s excludes nothing: %s; correct the line, unless that data has "
                "left the mixture",
                path,
                entry,
                reason,
            )
        logger.info(
            "%s has %d line(s), %d of which can exclude samples of this run; keys are checked when "
            "their shard is read",
            path,
            len(quarantine.entries),
            len(quarantine.entries) - sum(entry in idle for entry in quarantine.entries),
        )
    return quarantine


def reads_pixels(config: PretrainConfig, groups: Groups) -> bool:
    """Return whether a rank reads pictures.

    The last stage needs them; where damaged samples are replaced, the other stages must find the
    same damage.
    """
    is_needed = is_last_stage(groups) or config.data.loader.damage == "skip"
    return config.model.reconstructor.is_end_to_end and is_needed


def is_last_stage(groups: Groups) -> bool:
    """Return whether a rank runs the last stage of the pipeline."""
    return groups.pipeline_rank == groups.pipeline_size - 1
