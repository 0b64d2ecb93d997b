"""A run folder with a ledger, made by reading as training reads, without a model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Share, TokenBatches, TokenStep
from ernie_vilg.data.batches.token_reader import TokenSequence
from ernie_vilg.data.records.damage_log import LossLog, read_losses
from ernie_vilg.data.records.ledger import Ledger, describe_sequence
from ernie_vilg.data.sequence.quarantine import read_quarantine
from ernie_vilg.data.shards.damage import Loss
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.training.data_order import token_sequence
from ernie_vilg.training.lineage import check_lineage
from launch.drills.data_set import DataSet
from tests.training.runs import run_on, tiny_run

DATA_SIZE = 2


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """What a step trained on, over all replicas and micro-batches in order."""

    text: np.ndarray
    codes: np.ndarray


def run_config(folder: Path, data: DataSet, *, damage: str = "stop") -> PretrainConfig:
    """Return the settings of a tiny run on real tokenizers."""
    config = run_on(tiny_run(folder, steps=8), data)
    loader = replace(config.data.loader, damage=damage, max_lost_fraction=1.0)
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
        steps: steps made before the first one, and after the last one.
        before_step: called with the steps made before each.

    Returns:
        what each step got, by steps made with it.
    """
    run_dir = Path(config.run_dir)
    sequence, size = sequence_of_run(config), config.parallelism.global_batch_size
    batches = [
        TokenBatches(
            sequence,
            Share(global_batch_size=size, data_rank=rank, data_size=DATA_SIZE),
            micro_batch_size=config.parallelism.micro_batch_size,
            known_losses=read_losses(run_dir).losses,
            on_step=partial(_write_losses, LossLog(run_dir, rank)),
        )
        for rank in range(DATA_SIZE)
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    write_run(config)
    ledger = Ledger(
        run_dir,
        sequence=describe_sequence(sequence, size),
        quarantine=sequence.quarantine,
        data_parallel_size=DATA_SIZE,
        micro_batch_size=config.parallelism.micro_batch_size,
    )
    consumed = {}
    for step in steps:
        before_step(step)
        parts = [batch for replica in batches for batch in replica.at(step)]
        consumed[step + 1] = Consumed(
            text=np.concatenate([part.text.numpy() for part in parts]),
            codes=np.concatenate([part.codes.numpy() for part in parts]),
        )
        ledger.append(step + 1, step * size, size)
    ledger.close()
    for replica in batches:
        replica.close()
    return consumed


def sequence_of_run(config: PretrainConfig) -> TokenSequence:
    """Return what stands where in a run."""
    return token_sequence(
        config,
        check_lineage(config.data, config.model),
        read_quarantine(RunFolder(Path(config.run_dir)).quarantine),
        with_pixels=False,
    )


def _write_losses(log: LossLog, step: TokenStep, losses: list[Loss]) -> None:
    log.write(losses)
