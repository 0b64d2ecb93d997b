"""One pretraining run, from settings to the last checkpoint.

Source: ours.
"""

import json
import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.ledger import Ledger, describe_sequence
from ernie_vilg.data.token_reader import TokenSequence
from ernie_vilg.data.workers import start_worker_server
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.parallel.build import build_engine
from ernie_vilg.parallel.collectives import LEADER, barrier
from ernie_vilg.parallel.engine import Engine
from ernie_vilg.parallel.gather import gather_to_leader
from ernie_vilg.parallel.groups import Groups, build_groups, machine_device, start_processes
from ernie_vilg.parallel.precision import machine_precision
from ernie_vilg.training.checkpoint import Checkpoints
from ernie_vilg.training.lineage import Lineage, check_lineage
from ernie_vilg.training.loop import SilentStepLog, StepLog, train
from ernie_vilg.training.replica_batches import agreed_quarantine, reads_pixels, replica_batches
from ernie_vilg.training.run_folder import write_run
from ernie_vilg.training.sequence import order_identity, token_sequence
from ernie_vilg.training.tracking import RunTracker, SilentTracker, Tracker
from ernie_vilg.vqgan.weights import load_image_tokenizer

DrawSamples = Callable[[PretrainConfig, int, dict[str, Tensor]], dict[str, Path]]
"""(the run, step, whole weights) to picture files by name; runs on the leader."""

logger = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, launch: Launch, draw_samples: DrawSamples) -> None:
    """Train, or go on training, until `training.steps`; every rank calls it.

    Args:
        config: the run.
        launch: this process's place among the others.
        draw_samples: draws and captions with the weights of a step.

    Raises:
        ValueError: shards and tokenizers do not fit each other or the run's checkpoints.
    """
    start_worker_server(config.data.loader)
    lineage = check_lineage(config.data, config.model)
    config = with_decoder(config, lineage.image_tokenizer_config)
    precision = machine_precision(config.precision, machine_device(launch))
    if config.parallelism.tensor_parallel_size > 1:
        # One queue into the GPU, so that collectives start before the products that hide them,
        # as megatron-core asks; read when the GPU is first touched.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = start_processes(launch, config.cluster.collective_timeout_seconds)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)  # resumed runs are equal bit for bit
        # By default that also fills every new tensor, DeepSpeed's buffers of 2 GB included.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    layout = config.parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    if groups.rank == LEADER:
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        _log_start(config, groups, precision)
    quarantine = agreed_quarantine(Path(config.run_dir))
    sequence = token_sequence(config, lineage, quarantine, with_pixels=reads_pixels(config, groups))
    engine = build_engine(config, groups, precision, _decoder_weights(config))
    checkpoints = Checkpoints(
        Path(config.run_dir),
        config.checkpoint.keep,
        partial(_identity, config, groups, precision, lineage),
        lambda step: {
            "position": step * config.parallelism.global_batch_size,
            "quarantine": quarantine.digest(),
        },
    )
    first_step = checkpoints.restore(engine)
    tracker: Tracker = SilentTracker()
    ledger: StepLog = SilentStepLog()
    if groups.rank == LEADER:
        write_run(config)
        tracker = RunTracker(config, first_step)
        ledger = _open_ledger(config, sequence, groups)
    with closing(replica_batches(config, sequence, groups)) as batches, closing(ledger):
        train(
            engine,
            batches,
            config,
            first_step=first_step,
            checkpoints=checkpoints,
            ledger=ledger,
            tracker=tracker,
            draw_samples=lambda step: _draw_samples(
                engine, tracker, partial(draw_samples, config), step
            ),
        )
    tracker.close()
    barrier()
    dist.destroy_process_group()


def with_decoder(config: PretrainConfig, tokenizer: ImageTokenizerConfig) -> PretrainConfig:
    """Return the run whose reconstructor has the image tokenizer's decoder, if it needs one."""
    reconstructor = config.model.reconstructor
    if not reconstructor.is_end_to_end:
        return config
    reconstructor = replace(reconstructor, decoder=tokenizer)
    return replace(config, model=replace(config.model, reconstructor=reconstructor))


def _decoder_weights(config: PretrainConfig) -> dict[str, Tensor] | None:
    reconstructor = config.model.reconstructor
    if not (reconstructor.is_end_to_end and reconstructor.initialize_decoder):
        return None
    tokenizer, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
    return tokenizer.decoder.state_dict()


def _open_ledger(config: PretrainConfig, sequence: TokenSequence, groups: Groups) -> Ledger:
    return Ledger(
        Path(config.run_dir),
        sequence=describe_sequence(sequence, config.parallelism.global_batch_size),
        quarantine=sequence.quarantine,
        data_parallel_size=groups.data_size,
        micro_batch_size=config.parallelism.micro_batch_size,
    )


def _identity(
    config: PretrainConfig, groups: Groups, precision: torch.dtype, lineage: Lineage, step: int
) -> dict[str, Any]:
    """Return what a checkpoint of a step and the run that resumes it must share."""
    return {
        # As the manifest gives it back: JSON makes lists of tuples.
        "model": json.loads(json.dumps(asdict(config.model))),
        "lineage": {
            "text_tokenizer": lineage.text_tokenizer,
            "image_tokenizer": lineage.image_tokenizer,
        },
        "order": order_identity(config, lineage, step),
        "layout": {
            "tensor_parallel_size": groups.tensor_size,
            "pipeline_parallel_size": groups.pipeline_size,
            "data_parallel_size": groups.data_size,
            "zero_stage": config.parallelism.zero_stage,
        },
        "precision": str(precision).removeprefix("torch."),
    }


def _draw_samples(
    engine: Engine,
    tracker: Tracker,
    draw_samples: Callable[[int, dict[str, Tensor]], dict[str, Path]],
    step: int,
) -> None:
    weights = gather_to_leader(engine)
    if weights is not None:
        tracker.log_pictures(step, draw_samples(step, weights))
    barrier()


def _log_start(config: PretrainConfig, groups: Groups, precision: torch.dtype) -> None:
    logger.info(
        "%.1f M parameters, %s, on %d rank(s): %s; %.2f GFLOP per pair",
        num_parameters(config.model) / 1e6,
        str(precision).removeprefix("torch."),
        groups.world_size,
        config.parallelism.describe(groups.world_size),
        training_flops_per_pair(config.model) / 1e9,
    )
