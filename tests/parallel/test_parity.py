"""Every layout computes what one process computes: losses and gradient norms."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import (
    ParallelismConfig,
    PretrainConfig,
    PretrainDataConfig,
    TrainingConfig,
)
from ernie_vilg.data.batches import Batch
from ernie_vilg.parallel.build import build_engine
from ernie_vilg.parallel.groups import build_groups, start_processes
from ernie_vilg.vocabulary import text_slots
from tests.distributed import run_distributed

STEPS = 4
RELATIVE_TOLERANCE = 1e-5  # sums in another order, in float32

MODEL = ModelConfig(
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    text_vocab_size=48,
    text_length=6,
    codebook_size=40,
    image_grid_size=3,
)


def tiny_config(**parallelism: int) -> PretrainConfig:
    return PretrainConfig(
        run_dir="unused",
        precision="fp32",
        model=MODEL,
        data=PretrainDataConfig(token_shards="", text_tokenizer="", image_tokenizer=""),
        parallelism=ParallelismConfig(micro_batch_size=2, global_batch_size=8, **parallelism),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, gradient_clipping=0.5),
        training=TrainingConfig(steps=STEPS, save_every=STEPS),
    )


def global_batch(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of uneven length, so that means over micro-batches would differ."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(1, 7, (size,), generator=generator).tolist()
    pieces = torch.randint(4, MODEL.text_vocab_size, (size, 6), generator=generator).tolist()
    text = [
        text_slots(ids[:length], MODEL.text_length)
        for ids, length in zip(pieces, lengths, strict=True)
    ]
    codes = torch.randint(
        0, MODEL.codebook_size, (size, MODEL.num_image_tokens), generator=generator
    )
    return torch.tensor(text), codes


def train(launch: Launch, config: PretrainConfig) -> list[tuple[list[float], float]]:
    """Return the losses and the gradient norm of each step."""
    device = start_processes(launch, timeout_seconds=60)
    layout = config.parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    engine = build_engine(config, groups, torch.float32)
    share = layout.global_batch_size // groups.data_size
    history = []
    for step in range(STEPS):
        text, codes = (
            part[groups.data_rank * share :][:share]
            for part in global_batch(step, layout.global_batch_size)
        )
        batches = [
            Batch(text=text_part, codes=codes_part)
            for text_part, codes_part in zip(
                text.split(layout.micro_batch_size),
                codes.split(layout.micro_batch_size),
                strict=True,
            )
        ]
        losses = engine.train_batch(batches, learning_rate=1e-3)
        history.append((engine.mean_losses(losses).tolist(), engine.gradient_norm()))
    return history


@pytest.fixture(scope="module")
def one_process() -> Any:
    return run_distributed(train, 1, tiny_config())[0]


def test_first_loss_is_that_of_a_uniform_guess(one_process: Any) -> None:
    (total, text_to_image, image_to_text, _), _ = one_process[0]

    # Fresh weights are small, so every code and piece is about equally likely.
    assert text_to_image == pytest.approx(math.log(MODEL.codebook_size), rel=0.02)
    assert image_to_text == pytest.approx(math.log(MODEL.text_vocab_size), rel=0.02)
    assert total == pytest.approx(text_to_image + image_to_text, rel=1e-6)


def test_loss_does_not_depend_on_the_micro_batch(one_process: Any) -> None:
    config = tiny_config()
    whole = replace(config, parallelism=replace(config.parallelism, micro_batch_size=8))

    assert_equal(run_distributed(train, 1, whole)[0], one_process)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_equals_the_cpu(one_process: Any) -> None:
    (history,) = run_distributed(train, 1, tiny_config(), use_gpu=True)

    for (losses, norm), (expected_losses, expected_norm) in zip(history, one_process, strict=True):
        assert losses == pytest.approx(expected_losses, rel=1e-3)  # other kernels, TF32 off
        assert norm == pytest.approx(expected_norm, rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        pytest.param(
            8,
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            id="tensor 2 x pipeline 2 x data 2",
        ),
        pytest.param(4, {"tensor_parallel_size": 2, "zero_stage": 1}, id="tensor 2, ZeRO 1"),
        pytest.param(4, {"tensor_parallel_size": 2, "zero_stage": 2}, id="tensor 2, ZeRO 2"),
        pytest.param(4, {"tensor_parallel_size": 2, "zero_stage": 3}, id="tensor 2, ZeRO 3"),
        pytest.param(2, {"zero_stage": 2}, id="data 2, ZeRO 2, no megatron-core"),
        pytest.param(2, {"pipeline_parallel_size": 2}, id="pipeline 2, no megatron-core"),
    ],
)
def test_layout_equals_one_process(
    one_process: Any, world_size: int, layout: dict[str, int]
) -> None:
    for history in run_distributed(train, world_size, tiny_config(**layout)):
        assert_equal(history, one_process)


def assert_equal(history: Any, reference: Any) -> None:
    for (losses, norm), (expected_losses, expected_norm) in zip(history, reference, strict=True):
        assert losses == pytest.approx(expected_losses, rel=RELATIVE_TOLERANCE)
        assert norm == pytest.approx(expected_norm, rel=RELATIVE_TOLERANCE)
