"""The batches of one replica, and the account of what was lost on the way to them.

All tensor and pipeline ranks of a replica read the same samples, each for itself. Where damaged
samples are replaced (`loader.damage=skip`), they compare what they read, every step: a disk or a
cache that fails one node alone would otherwise make a replica train on a mixture of two batches.

Source: ours.
"""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Share, TokenBatches, TokenStep
from ernie_vilg.data.batches.token_reader import TokenSequence
from ernie_vilg.data.records.damage_log import DamageLog, read_damage
from ernie_vilg.data.records.skipped_updates import RecentPlaces
from ernie_vilg.data.sequence.quarantine import Quarantine, read_quarantine
from ernie_vilg.data.sequence.sample_reader import DataSource
from ernie_vilg.data.shards.damage import DamageFinding
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.layout.collectives import LEADER, gather_everywhere
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)


def agreed_quarantine(run_dir: Path, sources: Sequence[DataSource]) -> Quarantine:
    """Read the run's quarantine; all ranks must call. The leader says what it can leave out.

    Args:
        run_dir: the run's folder.
        sources: the run's data sets, which its lines should name.

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
                "%s leaves nothing out by its line of %s: %s; correct the line, unless that data "
                "has left the mixture",
                path,
                entry,
                reason,
            )
        logger.info(
            "%s has %d line(s), %d of which can leave out samples of this run; that a shard has "
            "the key is checked when it is read",
            path,
            len(quarantine.entries),
            len(quarantine.entries) - sum(entry in idle for entry in quarantine.entries),
        )
    return quarantine


def replica_batches(
    config: PretrainConfig,
    sequence: TokenSequence,
    groups: Groups,
    recent: RecentPlaces | None = None,
) -> TokenBatches:
    """Return the batches of this rank's replica.

    Args:
        config: the run.
        sequence: what stands where.
        groups: this rank's place.
        recent: is told where the samples of each step came from.
    """
    ledger = RunFolder(Path(config.run_dir)).ledger
    is_writer = groups.tensor_rank == 0 and groups.pipeline_rank == 0
    return TokenBatches(
        sequence,
        Share(
            global_batch_size=config.parallelism.global_batch_size,
            data_rank=groups.data_rank,
            data_size=groups.data_size,
        ),
        micro_batch_size=config.parallelism.micro_batch_size,
        known_damage=read_damage(ledger).findings,
        on_step=_StepCheck(
            config, groups, DamageLog(ledger, groups.data_rank) if is_writer else None, recent
        ),
        hand_out_pixels=is_last_stage(groups),  # which alone draws
        pin_memory=groups.device.type == "cuda",
    )


def reads_pixels(config: PretrainConfig, groups: Groups) -> bool:
    """Return whether a rank reads pictures.

    The last stage needs them; where damaged ones are replaced, the others must notice too.
    """
    is_needed = is_last_stage(groups) or config.data.loader.damage == "skip"
    return config.model.reconstructor.is_end_to_end and is_needed


def is_last_stage(groups: Groups) -> bool:
    """Return whether a rank runs the last stage of the pipeline."""
    return groups.pipeline_rank == groups.pipeline_size - 1


class _StepCheck:
    """Writes down what was lost in a step, and compares it within the replica."""

    def __init__(
        self,
        config: PretrainConfig,
        groups: Groups,
        log: DamageLog | None,
        recent: RecentPlaces | None,
    ) -> None:
        self._log = log
        self._recent = recent
        self._data_rank = groups.data_rank
        replica_size = groups.tensor_size * groups.pipeline_size
        self._must_agree = config.data.loader.damage == "skip" and replica_size > 1

    def __call__(self, step: TokenStep, findings: list[DamageFinding]) -> None:
        """Take a step as it is handed out, and the damage found new in it."""
        if self._log is not None:
            self._log.write(findings)
        if self._recent is not None:
            self._recent.remember(step.step, step.places)
        if self._must_agree:
            self._compare(step)

    def _compare(self, step: TokenStep) -> None:
        places = step.places
        content = np.stack([places.data_set, places.shard_index, places.index]).tobytes()
        read = gather_everywhere((self._data_rank, zlib.crc32(content)))
        for data_rank in sorted({rank for rank, _ in read}):
            if len({digest for rank, digest in read if rank == data_rank}) > 1:
                raise InputError(
                    f"the ranks of replica {data_rank} read different samples in step "
                    f"{step.step}: damage is seen by some of them alone, look for the shard in "
                    "ledger/damage-*.jsonl and for a failing disk or cache on one node"
                )
