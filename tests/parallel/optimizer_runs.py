"""Tiny runs that return losses, gradient norms and whole weights of each step."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.state.gather import gather_to_leader
from tests.parallel.saved import save_to
from tests.training.runs import MODEL, start, tiny_run

STEPS = 4
HALFWAY = 2
GLOBAL_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    """The results of a run, on the leader."""

    losses: list[list[float]]
    """Total loss and its parts, for each step."""
    gradient_norms: list[float]
    """Gradient norm of each step."""
    weights: list[dict[str, torch.Tensor]]
    """Whole weights by name, after each step."""
    is_offloaded: bool
    """Whether DeepSpeed keeps the optimizer in host memory."""


def run_config(folder: Path, *, ema_decay: float = 0.0, **layout: Any) -> PretrainConfig:
    """Return a run whose weights do not depend on the order of additions.

    AdamW's usual epsilon makes rounding errors as large as steps where the gradient is 0 but for
    them, as it is for the biases of keys.
    """
    config = tiny_run(folder, steps=STEPS, **layout)
    return replace(
        config,
        optimizer=replace(config.optimizer, epsilon=1e-3, gradient_clipping=0.1),
        training=replace(config.training, ema_decay=ema_decay),
    )


def take_steps(
    launch: Launch,
    config: PretrainConfig,
    precision: torch.dtype,
    folder: Path,
    first_step: int = 0,
) -> Result | None:
    """Train from a checkpoint in `folder`, if any, up to `STEPS`; save there halfway and last."""
    engine = start(launch, config, precision)
    if first_step:
        engine.load(folder / str(first_step))
    is_offloaded = engine._engine.zero_cpu_offload()
    result = Result(losses=[], gradient_norms=[], weights=[], is_offloaded=is_offloaded)
    for step in range(first_step, STEPS):
        losses = engine.train_batch(batches_of_step(engine, step), learning_rate=1e-2)
        result.losses.append(engine.mean_losses(losses).tolist())
        result.gradient_norms.append(engine.gradient_norm())
        weights = gather_to_leader(engine)
        if weights is not None:
            result.weights.append(weights)
        if step + 1 in (HALFWAY, STEPS):
            save_to(engine, folder / str(step + 1))
    return result if launch.rank == 0 else None


def batches_of_step(engine: Engine, step: int) -> list[Batch]:
    """Return this replica's part of a global batch that depends on the step only."""
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(
        4, MODEL.text_vocab_size, (GLOBAL_BATCH, MODEL.text_length), generator=generator
    )
    codes = torch.randint(
        0, MODEL.codebook_size, (GLOBAL_BATCH, MODEL.image_grid_size**2), generator=generator
    )
    rank, size = engine.groups.data_rank, engine.groups.data_size
    mine = zip(text.chunk(size)[rank].split(2), codes.chunk(size)[rank].split(2), strict=True)
    return [Batch(text=texts, codes=images) for texts, images in mine]
