"""Data, tokenizers and generators, made by the programs in launch/."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.reconstructor_parts.rows import (
    BATCH_PAIRS,
    GENERATORS,
    LEARNING_RATE,
    WARMUP_STEPS,
    Settings,
    generators_of,
)
from benchmarks.support.results import ROOT
from ernie_vilg.shapes.scenes import IMAGE_SIZE


def train_all(folder: Path, settings: Settings) -> None:
    """Train every tokenizer and generator, two programs of one rank and one thread at a time."""
    seeds = range(settings.seeds)
    with ThreadPoolExecutor(max_workers=2) as pool:
        tokens = [pool.submit(make_tokens, folder, seed, settings) for seed in seeds]

        def generator_of(seed: int, name: str) -> None:
            tokens[seed].result()  # submitted before, so it cannot wait for this job
            train_generator(folder, seed, name, settings)

        jobs = [
            pool.submit(generator_of, seed, name)
            for seed in seeds
            for name in generators_of(seed, settings)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_data(folder: Path, settings: Settings) -> None:
    """Draw the scenes, build image shards, train the text tokenizer."""
    shapes, shards = folder / "shapes", folder / "image_shards"
    text_tokenizer = folder / "text_tokenizer"
    run(
        "launch/draw_shapes.py",
        f"output_dir={shapes}",
        f"train_scenes={settings.train_scenes}",
        f"held_out_scenes={settings.held_out_scenes}",
        "num_workers=2",
        output=shapes,
        logs=folder,
    )
    run(
        "launch/build_shards.py",
        f"source={shapes}/train",
        f"output_dir={shards}",
        f"image_size={IMAGE_SIZE}",
        "num_workers=2",
        output=shards,
        logs=folder,
    )
    run(
        "launch/train_text_tokenizer.py",
        f"shards={shards}",
        f"output_dir={text_tokenizer}",
        "model_type=bpe",
        "vocab_size=400",
        "max_piece_length=6",
        output=text_tokenizer,
        logs=folder,
    )


def make_tokens(folder: Path, seed: int, settings: Settings) -> None:
    """Train a seed's image tokenizer and encode the pictures with it."""
    home = folder / f"seed_{seed}"
    weights, token_shards = home / "image_tokenizer/weights", home / "token_shards"
    run(
        "launch/train_image_tokenizer.py",
        "image_tokenizer=quickstart",
        f"shards={folder}/image_shards",
        f"run_dir={weights.parent}",
        f"image_tokenizer.codebook_size={settings.codebook_size}",
        f"image_tokenizer.patch_size={settings.patch_size}",
        f"training.steps={settings.tokenizer_steps}",
        f"training.seed={seed}",
        output=weights,
        logs=home,
    )
    run(
        "launch/encode_shards.py",
        f"shards={folder}/image_shards",
        f"text_tokenizer_dir={folder}/text_tokenizer",
        f"image_tokenizer_dir={weights}",
        f"output_dir={token_shards}",
        "keep_pixels=true",
        output=token_shards,
        logs=home,
    )


def train_generator(folder: Path, seed: int, generator: str, settings: Settings) -> None:
    """Train one generator of a seed and export it."""
    tokens = folder / f"seed_{seed}"
    home = tokens / generator
    run_dir, weights = home / "run", home / "weights"
    run(
        "launch/pretrain.py",
        "experiment=quickstart",
        f"run_dir={run_dir}",
        f"data.token_shards={tokens}/token_shards",
        f"data.text_tokenizer={folder}/text_tokenizer",
        f"data.image_tokenizer={tokens}/image_tokenizer/weights",
        f"data.seed={seed}",
        f"model.codebook_size={settings.codebook_size}",
        f"model.image_grid_size={IMAGE_SIZE // settings.patch_size}",
        *GENERATORS[generator],
        f"parallelism.micro_batch_size={BATCH_PAIRS}",
        f"parallelism.global_batch_size={BATCH_PAIRS}",
        f"optimizer.learning_rate={LEARNING_RATE}",
        f"optimizer.warmup_steps={WARMUP_STEPS}",
        f"training.seed={seed}",
        f"training.steps={settings.steps}",
        "checkpoint.every=100",
        "training.log_every=10",
        "samples.every=0",
        "tracking.wandb_mode=disabled",
        output=weights,  # a finished run that is not exported yet returns at once
        logs=home,
    )
    run(
        "launch/export.py",
        f"run={run_dir}",
        f"output_dir={weights}",
        output=weights,
        logs=home,
    )


def run(program: str, *overrides: str, output: Path, logs: Path) -> None:
    """Run a program on one thread unless its output exists; its lines go to a log.

    Raises:
        RuntimeError: it failed; the message ends with the end of its log.
    """
    if output.exists():
        return
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{Path(program).stem}.log"
    print(f"{program} {' '.join(overrides)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("ab") as file:
        done = subprocess.run(
            [sys.executable, program, *overrides],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{program} ended with {done.returncode}, see {log}:\n{tail}")
