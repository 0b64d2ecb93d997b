"""A run folder with a ledger, made by reading as training reads, without a model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.records.damage_log import DamageLog, read_damage
from ernie_vilg.data.records.ledger import Ledger
from ernie_vilg.data.sequence.order import ReplicaSlice, first_position
from ernie_vilg.data.sequence.quarantine import read_quarantine
from ernie_vilg.preparation.data_order import token_sequence
from ernie_vilg.preparation.lineage import check_lineage
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.runs.run_folder import RunFolder
from launch.drills.data_set import DataSet
from tests.training.runs import run_on, tiny_run

DATA_SIZE = 2


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """The samples of a step, over all replicas and micro-batches in order."""

    text: np.ndarray
    codes: np.ndarray


def run_config(folder: Path, data: DataSet, *, damage: str = "stop") -> PretrainConfig:
    """Return the settings of a tiny run on real tokenizers."""
    config = run_on(tiny_run(folder, steps=8), data)
    loader = replace(config.data.loader, damage=damage, max_damaged_fraction=1.0)
    return replace(config, data=replace(config.data, loader=loader))


def consume(
    config: PretrainConfig,
    steps: range,
    *,
    before_step: Callable[[int], None] = lambda step: None,
) -> dict[int, Consumed]:
    """Read as a launch of a run with two replicas does, and write its black box.

    Args:
        config: of the run.
        steps: the steps to make, from 1.
        before_step: called with each step before it is made.

    Returns:
        the samples of each step.
    """
    run_dir, folder = Path(config.run_dir), RunFolder(Path(config.run_dir)).ledger
    sequence, size = sequence_of_run(config), config.parallelism.global_batch_size
    batches = [
        StepSamples(
            sequence,
            ReplicaSlice(batch_sizes=BatchSizes(full=size), data_rank=rank, data_size=DATA_SIZE),
            known_damage=read_damage(folder).findings,
            on_damage=DamageLog(folder, rank).write,
        )
        for rank in range(DATA_SIZE)
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    write_run(config)
    ledger = Ledger(
        folder,
        sequence,
        data_parallel_size=DATA_SIZE,
        micro_batch_size=config.parallelism.micro_batch_size,
    )
    consumed = {}
    for step in steps:
        before_step(step)
        parts = [replica.at(step).content for replica in batches]
        consumed[step] = Consumed(
            text=np.concatenate([part.text.numpy() for part in parts]),
            codes=np.concatenate([part.codes.numpy() for part in parts]),
        )
        ledger.append(step, first_position(step, BatchSizes(full=size)), size)
    ledger.close()
    for replica in batches:
        replica.close()
    return consumed


def sequence_of_run(config: PretrainConfig) -> TokenSequence:
    """Return the training sequence of a run."""
    return token_sequence(
        config,
        check_lineage(config.data, config.model),
        read_quarantine(RunFolder(Path(config.run_dir)).quarantine),
        with_pixels=False,
    )
