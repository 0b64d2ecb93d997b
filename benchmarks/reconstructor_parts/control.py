"""The control: the image tokenizer's decoder, trained as long as the generators."""

from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW

from benchmarks.reconstructor_parts.rows import BATCH_PAIRS, LEARNING_RATE, WARMUP_STEPS, Settings
from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.batches.token_batches import Batch, TokenSequence
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.model.weights import read_model_config
from ernie_vilg.parallel.engine.settings import machine_precision
from ernie_vilg.runs.schedule import learning_rate_at
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.losses.pixel import reconstruction_loss
from ernie_vilg.vqgan.pixels import from_bytes
from ernie_vilg.vqgan.weights import load_image_tokenizer


def train_decoder_longer(home: Path, seed: int, settings: Settings) -> VQGAN:
    """Return the image tokenizer after training its decoder alone as long as the generators.

    An end-to-end decoder starts from the tokenizer's and trains for the generator's steps. This
    control takes the same steps on the same pictures with the same learning rates and loss, but
    from the codebook's vectors instead of hidden states.
    """
    tokenizer, _ = load_image_tokenizer(home / "image_tokenizer/weights")
    batches = _batches(home, seed)
    precision = machine_precision("auto", torch.device("cpu"))  # the generators'
    schedule = OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=WARMUP_STEPS)
    decoder = tokenizer.decoder.train().requires_grad_(True)
    optimizer = AdamW(
        decoder.parameters(), betas=(schedule.beta1, schedule.beta2), weight_decay=0.0
    )
    for step in range(1, settings.steps + 1):
        batch = batches.at(step).content
        assert batch.pixels is not None
        grids = batch.codes.unflatten(1, (tokenizer.config.grid_size, -1))
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            drawn = decoder(tokenizer.quantizer.lookup(grids))
        loss = reconstruction_loss(
            drawn, from_bytes(batch.pixels), absolute_weight=1.0, squared_weight=1.0
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), schedule.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings.steps, schedule)
        optimizer.step()
    return tokenizer.eval()


def _batches(home: Path, seed: int) -> StepSamples[Batch]:
    """Return the generators' batches with their pixels."""
    folder = home / "token_shards"
    source = DataSource(name="main", location=str(folder), manifest=read_manifest(folder, "token"))
    return StepSamples(
        TokenSequence(
            sources=(source,),
            mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
            seed=seed,
            shuffle_block_shards=16,
            quarantine=Quarantine(),
            loader=LoaderConfig(num_workers=0),
            model=read_model_config(home / "two_stage/weights"),
            with_pixels=True,
        ),
        ReplicaSlice(batch_sizes=BatchSizes(full=BATCH_PAIRS), data_rank=0, data_size=1),
    )
