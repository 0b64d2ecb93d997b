"""A tiny run of the image tokenizer's training, for the tests of this folder."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.train_image_tokenizer import (
    ImageTokenizerTrainingConfig,
    ReconstructionsConfig,
    TrainImageTokenizerConfig,
)
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.parallel.layout.groups import start_processes
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest, write_manifest
from ernie_vilg.tokenizer_training.train import train_image_tokenizer

SIZE = 16
SAMPLES = 24
ALONE = Launch(rank=0, local_rank=0, world_size=1)


def write_shards(folder: Path, *, num_damaged: int = 0) -> None:
    """Write one shard of random two-coloured pictures, the first ones damaged, and its manifest."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    path = folder / "images-00000.tar"
    with tarfile.open(path, "w") as archive:
        for index in range(SAMPLES):
            pixels = np.empty((SIZE, SIZE, 3), np.uint8)
            pixels[:8] = random.integers(0, 256, 3)
            pixels[8:] = random.integers(0, 256, 3)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            member = tarfile.TarInfo(f"{index:06d}.png")
            if index < num_damaged:
                buffer.truncate(buffer.tell() // 2)
            member.size = len(buffer.getvalue())
            buffer.seek(0)
            archive.addfile(member, buffer)
    shard = describe_shard(path, samples=SAMPLES, members=("png",))
    settings = {"image_size": SIZE}
    write_manifest(folder, Manifest(kind="image", shards=(shard,), settings=settings, lineage={}))


def tiny_config(
    shards: Path,
    run_dir: Path,
    *,
    learning_rate: float = 3.0e-3,
    image_size: int = SIZE,
    loader: LoaderConfig | None = None,
    revive_every: int = 1,
    save_every: int = 2,
    precision: Literal["bf16", "fp32"] = "fp32",
    **training: int | float | str,
) -> TrainImageTokenizerConfig:
    """Return settings under which a step takes milliseconds; float32 unless told otherwise."""
    defaults: dict[str, int | float | str] = {
        "steps": 4,
        "global_batch_size": 8,
        "log_every": 1,
    }
    return TrainImageTokenizerConfig(
        shards=str(shards),
        run_dir=str(run_dir),
        image_tokenizer=ImageTokenizerConfig(
            image_size=image_size,
            codebook_size=32,
            embedding_size=4,
            base_channels=16,
            channel_multipliers=(1,),
            num_residual_blocks=0,
            patch_size=8,
            encoder_kernel_size=1,
            normalization="channel",
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=1, weight_decay=0.0),
        codebook=CodebookConfig(revive_every=revive_every, revive_until=1.0),
        precision=precision,
        checkpoint=CheckpointConfig(every=save_every),
        reconstructions=ReconstructionsConfig(pictures=16),
        training=ImageTokenizerTrainingConfig(**{**defaults, **training}),  # type: ignore[arg-type]
        loader=loader or LoaderConfig(num_workers=0),
    )


@contextmanager
def process_group(launch: Launch = ALONE) -> Iterator[torch.device]:
    """Form a process group with the other ranks during a block."""
    device = start_processes(launch, timeout_seconds=60)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def run(launch: Launch, config: TrainImageTokenizerConfig) -> None:
    """Train to the end, as one rank."""
    torch.set_num_threads(1)
    manifest = read_manifest(Path(config.shards), "image")
    with process_group(launch) as device:
        train_image_tokenizer(config, manifest, device)
