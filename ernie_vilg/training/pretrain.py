"""One pretraining run, from settings to the last checkpoint.

Source: ours.
"""

import json
import logging
import os
from collections.abc import Callable
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
from ernie_vilg.data.batches import TokenBatches
from ernie_vilg.data.order import SampleOrder
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
from ernie_vilg.training.loop import train
from ernie_vilg.training.run_folder import write_run
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
    engine = build_engine(config, groups, precision, _decoder_weights(config))
    checkpoints = Checkpoints(
        Path(config.run_dir),
        config.training.keep_checkpoints,
        _identity(config, groups, precision, lineage),
    )
    first_step = checkpoints.restore(engine)
    tracker: Tracker = SilentTracker()
    if groups.rank == LEADER:
        write_run(config)
        tracker = RunTracker(config, first_step)
    train(
        engine,
        _batches(config, lineage, groups),
        config,
        first_step=first_step,
        checkpoints=checkpoints,
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


def _batches(config: PretrainConfig, lineage: Lineage, groups: Groups) -> TokenBatches:
    data = config.data
    return TokenBatches(
        Path(data.token_shards),
        lineage.manifest,
        config.model,
        SampleOrder(lineage.manifest, data.seed, data.shuffle_block_shards),
        global_batch_size=config.parallelism.global_batch_size,
        micro_batch_size=config.parallelism.micro_batch_size,
        data_rank=groups.data_rank,
        data_size=groups.data_size,
        # The last stage alone draws.
        with_pixels=config.model.reconstructor.is_end_to_end
        and groups.pipeline_rank == groups.pipeline_size - 1,
    )


def _identity(
    config: PretrainConfig, groups: Groups, precision: torch.dtype, lineage: Lineage
) -> dict[str, Any]:
    """Return what a checkpoint and the run that resumes it must share."""
    return {
        # As the manifest gives it back: JSON makes lists of tuples.
        "model": json.loads(json.dumps(asdict(config.model))),
        "lineage": {
            "token_shards": lineage.manifest.digest(),
            "text_tokenizer": lineage.text_tokenizer,
            "image_tokenizer": lineage.image_tokenizer,
        },
        "order": {
            "seed": config.data.seed,
            "shuffle_block_shards": config.data.shuffle_block_shards,
            "global_batch_size": config.parallelism.global_batch_size,
        },
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
