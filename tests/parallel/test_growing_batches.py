"""Steps with different numbers of micro-batches equal whole batches in plain torch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from ernie_vilg.config.batch_sizes import BatchSizeStageConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.sequence.order import batch_size
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Objective
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.optimizer import build_optimizer
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.vocabulary import PADDING_ID
from tests.distributed import run_distributed
from tests.parallel.parity import (
    LEARNING_RATE,
    RELATIVE_TOLERANCE,
    History,
    Row,
    Variant,
    config_of,
    global_batch,
    largest_difference,
    micro_batches,
)

WARMUP = (
    BatchSizeStageConfig(steps=1, global_batch_size=4),
    BatchSizeStageConfig(steps=2, global_batch_size=12),
)
STEPS, FULL = 5, 16


def growing(**layout: Any) -> PretrainConfig:
    """Return a run of a layout whose batch grows."""
    row = Row(tensor=layout.pop("tensor", 1), pipeline=layout.pop("pipeline", 1), data=1)
    config = config_of(replace(row, variant=Variant(**layout)))
    sizes: dict[str, Any] = {"global_batch_size": FULL, "batch_size_warmup": WARMUP}
    return replace(config, parallelism=replace(config.parallelism, **sizes))


def at_step(config: PretrainConfig, step: int) -> PretrainConfig:
    """Return the run as it is in one step, counted from 0."""
    size = batch_size(step + 1, config.batch_sizes)
    layout = replace(config.parallelism, global_batch_size=size, batch_size_warmup=())
    return replace(config, parallelism=layout)


def histories_of(launch: Launch, configs: list[PretrainConfig]) -> list[History]:
    """Train runs of one layout one after another."""
    device = start_processes(launch, timeout_seconds=120)
    layout = configs[0].parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    histories = []
    for config in configs:
        engine = build_engine(config, groups, torch.float32)
        history = []
        for step in range(STEPS):
            batches = micro_batches(groups, at_step(config, step), step)
            losses = engine.mean_losses(engine.train_batch(batches, LEARNING_RATE)).tolist()
            history.append((losses, engine.gradient_norm()))
            assert engine.last_decision().read().loss == pytest.approx(losses[0], rel=1e-6)
        histories.append(history)
    return histories


def reference(config: PretrainConfig) -> History:
    """Return the history of plain torch, with one pass per step."""
    model = build_transformer(config.model, SINGLE_DEVICE)
    initialize(model.named_parameters(), config.model, config.training.seed)
    objective = Objective(config.objective, SINGLE_DEVICE)
    optimizer = build_optimizer(model.named_parameters(), config.model, config.optimizer, 0.0)
    history = []
    for step in range(STEPS):
        batch = global_batch(step, batch_size(step + 1, config.batch_sizes))
        count = (batch.text != PADDING_ID).sum().float().reshape(1)
        losses = objective(model((batch.text, batch.codes)), (batch.text, batch.codes, count))
        optimizer.zero_grad()
        losses.total.backward()
        norm = clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        optimizer.step()
        history.append((losses.detached().tolist(), float(norm)))
    return history


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param(
            [{}, {"offload": True}, {"zero": 2}, {"zero": 2, "offload": True}, {"zero": 3}],
            id="data 2",
        ),
        pytest.param([{"pipeline": 2}], id="pipeline 2"),
        pytest.param([{"tensor": 2}], id="tensor 2"),
    ],
)
def test_a_growing_batch_equals_whole_batches(layouts: list[dict[str, Any]]) -> None:
    expected = reference(growing())

    ranks = run_distributed(histories_of, 2, [growing(**layout) for layout in layouts])

    for histories in ranks:
        for layout, history in zip(layouts, histories, strict=True):
            assert largest_difference(history, expected) <= RELATIVE_TOLERANCE, layout
