"""A tiny engine of the image tokenizer and its batches, for the tests of this folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.tokenizer_objective import AdversarialConfig, TokenizerObjectiveConfig
from ernie_vilg.config.train_image_tokenizer import (
    ImageTokenizerTrainingConfig,
    TrainImageTokenizerConfig,
)
from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.parallel.layout.groups import build_groups
from ernie_vilg.tokenizer_training.engine import TokenizerEngine
from ernie_vilg.tokenizer_training.results import RESULTS
from tests.distributed import one_process

SIZE = 16
BATCH_SIZE = 8
TRAIN_FROM, START = 1, 3
"""Steps after which the discriminator trains, and after which its term counts."""

Quantizer = Literal["nearest", "ema", "normalized", "simvq", "gumbel"]
ADVERSARIAL = AdversarialConfig(
    weight=0.5,
    train_from_step=TRAIN_FROM,
    start_step=START,
    base_channels=8,
    num_layers=1,
    lecam_weight=0.1,
)


def engine_config(
    quantizer: Quantizer = "ema",
    *,
    adversarial: AdversarialConfig = ADVERSARIAL,
    epsilon: float = 1.0e-8,
    ema_decay: float = 0.99,
    revive_every: int = 2,
    guards: GuardsConfig | None = None,
    input_noise: float = 0.0,
) -> TrainImageTokenizerConfig:
    """Return settings with every part that a step can have, and networks that take milliseconds."""
    return TrainImageTokenizerConfig(
        shards="shards",
        run_dir="run",
        image_tokenizer=ImageTokenizerConfig(
            image_size=SIZE,
            codebook_size=32,
            embedding_size=4,
            quantizer=quantizer,
            base_channels=16,
            channel_multipliers=(1,),
            num_residual_blocks=0,
            patch_size=8,
            normalization="channel",
        ),
        optimizer=OptimizerConfig(learning_rate=1.0e-3, warmup_steps=1, epsilon=epsilon),
        codebook=CodebookConfig(revive_every=revive_every, revive_until=1.0),
        objective=TokenizerObjectiveConfig(adversarial=adversarial, input_noise=input_noise),
        precision="fp32",
        checkpoint=CheckpointConfig(every=2),
        training=ImageTokenizerTrainingConfig(
            steps=20, global_batch_size=BATCH_SIZE, ema_decay=ema_decay
        ),
        guards=guards or GuardsConfig(),
    )


def without_discriminator() -> AdversarialConfig:
    """Return settings of no adversarial loss."""
    return replace(ADVERSARIAL, weight=0.0)


def pictures_of_step(step: int) -> Tensor:
    """Return the whole batch of a step, uint8 [BATCH_SIZE, 3, SIZE, SIZE]."""
    generator = torch.Generator().manual_seed(step)
    shape = (BATCH_SIZE, 3, SIZE, SIZE)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def take_step(engine: TokenizerEngine, step: int, *, micro_batches: int = 1) -> Tensor:
    """Take a step from 0 on this rank's part of its batch; return the results' means over ranks."""
    groups = engine.groups
    share = pictures_of_step(step).chunk(groups.data_size)[groups.data_rank]
    results = engine.train_batch(
        list(share.chunk(micro_batches)), engine.config.optimizer.learning_rate
    )
    return engine.mean_losses(results)


@contextmanager
def lone_engine(config: TrainImageTokenizerConfig) -> Iterator[TokenizerEngine]:
    """Run a block with an engine on one rank."""
    torch.set_num_threads(1)
    with one_process():
        yield build(config)


def build(
    config: TrainImageTokenizerConfig, precision: torch.dtype = torch.float32
) -> TokenizerEngine:
    """Return a fresh engine on the CPU in this process's group."""
    return TokenizerEngine(config, build_groups(1, 1, torch.device("cpu")), precision)


def saved_state(engine: TokenizerEngine) -> dict[str, Any]:
    """Return copies of the tensors that the leader saves, by their place in the file."""
    snapshot = Snapshot()
    engine.save(snapshot)
    return dict(_flattened("", snapshot.files))


def write_snapshot(engine: TokenizerEngine, folder: Path) -> None:
    """Write what the leader saves."""
    snapshot = Snapshot()
    engine.save(snapshot)
    folder.mkdir(exist_ok=True)
    for name, content in snapshot.files.items():
        torch.save(content, folder / name)


def replicated_state(engine: TokenizerEngine) -> dict[str, Tensor]:
    """Return copies of what this rank shares with others, by name and kind."""
    return {
        f"{key.name}/{key.kind}": tensor.detach().clone() for key, tensor in engine.replicated()
    }


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of the values that two states do not share bit for bit."""
    assert before.keys() == after.keys()
    return [name for name, value in before.items() if not _are_equal(value, after[name])]


def result(results: Tensor, name: str) -> float:
    """Return one number of a step's results."""
    return float(results[RESULTS.index(name)])


def _flattened(prefix: str, value: Any) -> Sequence[tuple[str, Any]]:
    if isinstance(value, dict):
        return [each for key, part in value.items() for each in _flattened(f"{prefix}/{key}", part)]
    return [(prefix, value)]


def _are_equal(one: Any, other: Any) -> bool:
    return one.equal(other) if isinstance(one, Tensor) else bool(one == other)
