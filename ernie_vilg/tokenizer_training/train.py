"""Training of the image tokenizer, data parallel over any number of ranks.

Every rank reconstructs its part of the batch; DistributedDataParallel averages the gradients. The
loss is a sum of named terms; `loss_terms` is the place for a perceptual or an adversarial one.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841), without its discriminator.
"""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ernie_vilg.checkpoint.folder import resumable_checkpoint
from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.data import ONLY_DATA_SET
from ernie_vilg.config.tokenizer_objective import TokenizerObjectiveConfig
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.data.batches.image_batches import ImageBatches, ImageSequence
from ernie_vilg.data.batches.workers import start_worker_server
from ernie_vilg.data.records.damage_log import DamageLog, read_damage
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine.precision import machine_precision
from ernie_vilg.parallel.layout.collectives import LEADER, barrier, broadcast_from_leader
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.schedule import learning_rate_at
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.jsonl import append_records
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.tokenizer_training.codebook import initialize_codebook, revive_unused_codes
from ernie_vilg.tokenizer_training.metrics import TokenizerMeter, evaluate, log_line
from ernie_vilg.tokenizer_training.state import (
    TokenizerState,
    fresh_state,
    load_checkpoint,
    save_checkpoint,
)
from ernie_vilg.tracking.tracker import keep_metrics_until
from ernie_vilg.training.replica_batches import agreed_quarantine
from ernie_vilg.vqgan.autoencoder import AutoencoderOutput
from ernie_vilg.vqgan.losses.pixel import quantization_loss, reconstruction_loss
from ernie_vilg.vqgan.pixels import from_bytes
from ernie_vilg.vqgan.weights import save_image_tokenizer

_FREE_SETTINGS = ("image_cache_bytes", "log_every")
"""Settings that may change when a run is resumed, because no weight depends on them."""

logger = logging.getLogger(__name__)


def train_image_tokenizer(
    config: TrainImageTokenizerConfig, manifest: Manifest, device: torch.device
) -> None:
    """Train from the newest checkpoint to the last step, and write the final weights.

    All ranks must call, in a process group; the leader writes.

    Args:
        config: settings of the run.
        manifest: manifest of `config.shards`.
        device: this rank's device.

    Raises:
        InputError: the shards are damaged, or the run folder belongs to other settings.
    """
    start_worker_server(config.loader)
    run_dir = Path(config.run_dir)
    identity = _identity(config, manifest)
    state = fresh_state(config, device)
    _resume(state, run_dir, identity)
    with closing(_batches(config, manifest, device)) as batches:
        _train(state, batches, config, run_dir, identity)
        if dist.get_rank() == LEADER:
            _write_results(state, batches, config, run_dir)
    barrier()


def image_sequence(
    config: TrainImageTokenizerConfig, manifest: Manifest, quarantine: Quarantine
) -> ImageSequence:
    """Return the order of the pictures of a run.

    Args:
        config: settings of the run.
        manifest: manifest of `config.shards`.
        quarantine: pictures that the run excludes.
    """
    return ImageSequence(
        sources=(_source(config, manifest),),
        mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
        seed=config.training.seed,
        shuffle_block_shards=config.training.shuffle_block_shards,
        quarantine=quarantine,
        loader=config.loader,
        image_size=config.image_tokenizer.image_size,
        horizontal_flip=config.training.horizontal_flip,
        cache_bytes=config.training.image_cache_bytes,
    )


def loss_terms(
    output: AutoencoderOutput,
    images: Tensor,
    config: TokenizerObjectiveConfig,
    codebook: CodebookConfig,
) -> dict[str, Tensor]:
    """Return the weighted terms of the loss by name, float32 [] each.

    Args:
        output: output of the model.
        images: its input, float [batch, 3, height, width] in [-1, 1].
        config: weights of the terms.
        codebook: weights of the quantizer's terms.
    """
    return {
        "reconstruction_loss": reconstruction_loss(
            output.reconstruction,
            images,
            absolute_weight=config.absolute_error_weight,
            squared_weight=config.squared_error_weight,
        ),
        "quantization_loss": quantization_loss(
            output.quantized,
            codebook_weight=codebook.codebook_weight,
            commitment_weight=codebook.commitment_weight,
        ),
    }


def _source(config: TrainImageTokenizerConfig, manifest: Manifest) -> DataSource:
    return DataSource(name=ONLY_DATA_SET, location=config.shards, manifest=manifest)


def _batches(
    config: TrainImageTokenizerConfig, manifest: Manifest, device: torch.device
) -> ImageBatches:
    """Return this rank's batches; all ranks must call."""
    run_dir, rank = Path(config.run_dir), dist.get_rank()
    return ImageBatches(
        image_sequence(config, manifest, agreed_quarantine(run_dir, [_source(config, manifest)])),
        ReplicaSlice(
            global_batch_size=config.training.global_batch_size,
            data_rank=rank,
            data_size=dist.get_world_size(),
        ),
        known_damage=read_damage(RunFolder(run_dir).ledger).findings,
        on_damage=DamageLog(RunFolder(run_dir).ledger, rank).write,
        pin_memory=device.type == "cuda",
    )


def _train(
    state: TokenizerState,
    batches: ImageBatches,
    config: TrainImageTokenizerConfig,
    run_dir: Path,
    identity: Mapping[str, Any],
) -> None:
    training = config.training
    device = state.code_counts.device
    precision = machine_precision(config.precision, device)
    replica = _replicate(state.model)
    meter = TokenizerMeter(state.code_counts.shape[0], device)
    while state.step < training.steps:
        started = time.monotonic()
        images = to_device(batches.at(state.step + 1), device)
        with _autocast(device, precision):
            _update_codebook(state, images, config)
        learning_rate = learning_rate_at(state.step + 1, training.steps, config.optimizer)
        output, terms = _take_step(state, replica, images, config, learning_rate, precision)
        meter.add(output, images, terms)
        state.step += 1
        state.seconds += time.monotonic() - started
        is_last = state.step == training.steps
        if state.step % training.log_every == 0 or is_last:
            metrics = {**meter.read(training.global_batch_size), "learning_rate": learning_rate}
            _log(state.step, training.steps, metrics, run_dir)
        if state.step % config.checkpoint.every == 0 or is_last:
            _save(state, run_dir, identity)
            meter.restart_clock()


def _replicate(model: nn.Module) -> nn.Module:
    """Wrap the model so that its gradients are averaged over ranks."""
    if dist.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def _update_codebook(
    state: TokenizerState, images: Tensor, config: TrainImageTokenizerConfig
) -> None:
    """Initialize the codebook before the first step; later, at intervals, revive unused codes."""
    training, codebook = config.training, config.codebook
    is_interval = codebook.revive_every and state.step % codebook.revive_every == 0
    if state.step > 0 and not (is_interval and state.step < codebook.revive_until * training.steps):
        return
    # One generator per step, so that a resumed run draws the same numbers.
    generator = torch.Generator(images.device)
    generator.manual_seed((training.seed << 32) + state.step)
    with torch.no_grad():
        vectors = state.model.encoder(images)
    quantizer = state.model.quantizer
    if state.step == 0:
        initialize_codebook(quantizer, vectors, generator)
    else:
        moved = revive_unused_codes(
            quantizer, state.optimizer, vectors, state.code_counts, generator
        )
        logger.debug("step %d: %d unused codes moved", state.step, moved)
    state.code_counts.zero_()


def _take_step(
    state: TokenizerState,
    replica: nn.Module,
    images: Tensor,
    config: TrainImageTokenizerConfig,
    learning_rate: float,
    precision: torch.dtype,
) -> tuple[AutoencoderOutput, dict[str, Tensor]]:
    """Update the weights once; return this rank's output and the terms of its loss."""
    with _autocast(images.device, precision):
        output: AutoencoderOutput = replica(images)
    terms = loss_terms(output, images, config.objective, config.codebook)
    torch.stack(list(terms.values())).sum().backward()
    if config.optimizer.gradient_clipping > 0:
        nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.gradient_clipping)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    codes = output.quantized.codes.flatten()
    state.code_counts += torch.bincount(codes, minlength=len(state.code_counts))
    return output, terms


def to_device(pictures: Tensor, device: torch.device) -> Tensor:
    """Turn pictures uint8 [batch, 3, height, width] into float32 in [-1, 1], channels last."""
    images = from_bytes(pictures.to(device, non_blocking=True))
    return images.contiguous(memory_format=torch.channels_last)


def _autocast(device: torch.device, precision: torch.dtype) -> Any:
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def _identity(config: TrainImageTokenizerConfig, manifest: Manifest) -> dict[str, Any]:
    """Return the settings on which the weights depend, as JSON values."""
    settings = asdict(config)
    training = {
        name: value for name, value in settings["training"].items() if name not in _FREE_SETTINGS
    }
    identity = {
        **{f"training.{name}": value for name, value in training.items()},
        "image_tokenizer": settings["image_tokenizer"],
        "objective": settings["objective"],
        "codebook": settings["codebook"],
        "optimizer": settings["optimizer"],
        "shards": manifest.digest(),
    }
    # Through JSON, where a tuple becomes a list, as in the checkpoint.
    result: dict[str, Any] = json.loads(json.dumps(identity))
    return result


def _resume(state: TokenizerState, run_dir: Path, identity: Mapping[str, Any]) -> None:
    """Load the newest checkpoint, if any, on all ranks."""
    is_leader = dist.get_rank() == LEADER
    found: Path | str | None = None
    if is_leader:
        try:
            found = resumable_checkpoint(run_dir, lambda step: identity)
        except InputError as error:
            found = str(error)
    found = broadcast_from_leader(found)
    if isinstance(found, str):
        raise InputError(found)
    if found is not None:
        load_checkpoint(state, found, is_leader=is_leader)
        logger.info("resumed from %s", found)
    if is_leader:
        run_dir.mkdir(parents=True, exist_ok=True)
        keep_metrics_until(RunFolder(run_dir).metrics, state.step)


def _log(step: int, steps: int, metrics: Mapping[str, float], run_dir: Path) -> None:
    if dist.get_rank() != LEADER:
        return
    append_records(RunFolder(run_dir).metrics, [{"step": step, **metrics}])
    logger.info("%s", log_line(step, steps, metrics))


def _save(state: TokenizerState, run_dir: Path, identity: Mapping[str, Any]) -> None:
    """Commit a checkpoint on the leader; all ranks must call."""
    code_counts = state.code_counts.clone()
    dist.all_reduce(code_counts)
    if dist.get_rank() == LEADER:
        save_checkpoint(state, run_dir, identity, code_counts)
    barrier()


def _write_results(
    state: TokenizerState, batches: ImageBatches, config: TrainImageTokenizerConfig, run_dir: Path
) -> None:
    """Write the final weights, the grid of reconstructions and the final figures."""
    count, folder = config.reconstructions.pictures, RunFolder(run_dir)
    figures = evaluate(state.model, batches, count, folder.tokenizer_pictures)
    sha256 = save_image_tokenizer(state.model, folder.tokenizer_weights)
    figures |= {
        "steps": state.step,
        "seconds": state.seconds,
        "images_per_second": state.step * config.training.global_batch_size / state.seconds,
    }
    write_json(folder.tokenizer_figures, {**figures, "sha256": sha256})
    logger.info(
        "%s: %.2f dB PSNR, %.0f %% of the codebook used, %.0f s of steps",
        folder.tokenizer_weights,
        figures["psnr"],
        100 * figures["codebook_usage"],
        state.seconds,
    )
