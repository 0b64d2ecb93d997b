"""A tiny run of the image tokenizer's training, for the tests of this folder."""

import io
import json
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.config.train_image_tokenizer import (
    ImageTokenizerTrainingConfig,
    ReconstructionsConfig,
    TrainImageTokenizerConfig,
)
from ernie_vilg.data.batches import workers
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest, write_manifest
from ernie_vilg.tokenizer_training.saved_state import STATE_FILE
from ernie_vilg.tokenizer_training.train import train_image_tokenizer

SIZE = 16
SAMPLES = 24
ALONE = Launch(rank=0, local_rank=0, world_size=1)


def write_shards(folder: Path, *, num_damaged: int = 0, seed: int = 0) -> None:
    """Write one shard of random two-coloured pictures, the first ones damaged, and its manifest."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
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
        # When a save in the background is committed depends on the machine.
        checkpoint=CheckpointConfig(every=save_every, asynchronous=False),
        reconstructions=ReconstructionsConfig(pictures=16),
        tracking=TrackingConfig(wandb_mode="disabled"),
        training=ImageTokenizerTrainingConfig(**{**defaults, **training}),  # type: ignore[arg-type]
        loader=loader or LoaderConfig(num_workers=0),
    )


class HookedPhases(Phases):
    """Phases of a rank, at one of which something happens."""

    def __init__(self, *, at: Phase | str, step: int, act: Callable[[], object]) -> None:
        """Take the phase or the point, its step, and what happens then, each time."""
        super().__init__()
        self._at, self._step, self._act = at, step, act

    def enter(self, phase: Phase, step: int) -> None:
        super().enter(phase, step)
        self._pass(phase)

    def point(self, name: str) -> None:
        self._pass(name)

    def _pass(self, name: str) -> None:
        if name == self._at and self.now.step == self._step:
            self._act()


def kill_at(config: TrainImageTokenizerConfig, at: Phase | str, step: int) -> None:
    """Train in a process that is killed at a phase or a point of a step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(workers.PRELOADED_MODULES)
    doomed = context.Process(target=_run_until, args=(config, at, step))
    doomed.start()
    doomed.join()
    assert doomed.exitcode == -signal.SIGKILL


def _run_until(config: TrainImageTokenizerConfig, at: Phase | str, step: int) -> None:
    run(ALONE, config, phases=HookedPhases(at=at, step=step, act=_kill))


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of steps in the run's metrics, without those of evaluations."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def hash_of_state(run_dir: Path, step: int) -> str:
    """Return the hash of everything that a checkpoint holds of a run."""
    return sha256_of_file(RunFolder(run_dir).checkpoint(step) / STATE_FILE)


def run(launch: Launch, config: TrainImageTokenizerConfig, **options: Any) -> int:
    """Train or go on, as one rank; return the exit code."""
    torch.set_num_threads(1)
    manifest = read_manifest(Path(config.shards), "image")
    held_out = config.reconstructions.shards
    try:
        return train_image_tokenizer(
            config,
            launch,
            manifest,
            None if held_out is None else read_manifest(Path(held_out), "image"),
            **options,
        )
    finally:
        # What a run sets for its process must not reach the tests that follow in this one.
        torch.use_deterministic_algorithms(False)
        if dist.is_initialized():  # after an error
            dist.destroy_process_group()
