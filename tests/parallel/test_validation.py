"""Held-out losses do not depend on the layout, and measuring them changes nothing."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.model.head import HeadOutput
from ernie_vilg.model.loss import mean_losses, target_losses
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.observers.held_out import HeldOut
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.state.gather import gather_to_leader
from ernie_vilg.vocabulary import PADDING_ID
from tests.distributed import run_distributed
from tests.parallel.parity import History, Row, Variant, config_of, global_batch, train

NUM_PAIRS = 7  # no multiple of a micro-batch, and with 8 replicas one has no pair
ONE_PROCESS = Row(tensor=1, pipeline=1, data=1)
Measured = tuple[History, list[list[float]], dict[str, Tensor] | None]


def averaged(row: Row) -> PretrainConfig:
    """Return the run of a row, with an average of its weights."""
    config = config_of(row)
    layout = config.parallelism
    size = min(layout.micro_batch_size, layout.global_batch_size // row.data)
    return replace(
        config,
        parallelism=replace(layout, micro_batch_size=size),
        training=replace(config.training, ema_decay=0.5),
    )


def held_out(config: PretrainConfig, groups: Any) -> HeldOut:
    """Return the pairs of this rank's replica."""

    def read(rows: Any) -> Batch:
        whole = global_batch(1000, NUM_PAIRS)
        pixels = whole.pixels if config.model.reconstructor.is_end_to_end else None
        return Batch(
            text=whole.text[rows],
            codes=whole.codes[rows],
            pixels=None if pixels is None else pixels[rows],
        )

    return HeldOut.cut(
        NUM_PAIRS,
        micro_batch_size=config.parallelism.micro_batch_size,
        data_rank=groups.data_rank,
        data_size=groups.data_size,
        read=read,
    )


def measure(launch: Launch, config: PretrainConfig, between_steps: bool = True) -> Measured:
    """Train; return the history, the sums of held-out losses, and the leader's weights.

    The sums are those before training, after it, and under the average of the weights.
    """
    layout = config.parallelism
    device = start_processes(launch, timeout_seconds=120)
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    engine = build_engine(config, groups, torch.float32)
    if not between_steps:
        return train(engine, config), [], gather_to_leader(engine)
    batches = held_out(config, groups).batches
    sums = [engine.evaluate(batches).tolist()]
    history = train(engine, config)
    sums.append(engine.evaluate(batches).tolist())
    with engine.shards.showing(WEIGHT_AVERAGE):
        sums.append(engine.evaluate(batches).tolist())
    assert sums[1] == engine.evaluate(batches).tolist()  # the average has gone back
    return history, sums, gather_to_leader(engine)


@lru_cache(maxsize=1)
def reference() -> Measured:
    """Return what one process measures."""
    (measured,) = run_distributed(measure, 1, averaged(ONE_PROCESS))
    return measured


def test_sums_are_those_of_each_pair_alone() -> None:
    config = averaged(ONE_PROCESS)
    _, (_, after, _), weights = reference()
    assert weights is not None
    model = build_transformer(config.model)
    model.load_state_dict(weights)
    whole = global_batch(1000, NUM_PAIRS)

    with torch.no_grad():
        output: HeadOutput = model((whole.text, whole.codes))
    image, text = (each.double() for each in target_losses(output, whole.text, whole.codes))

    means = mean_losses(torch.tensor(after, dtype=torch.float64), config.model, config.objective)
    num_pieces = int((whole.text != PADDING_ID).sum())
    assert means.num_pairs == NUM_PAIRS
    assert means.text_to_image == pytest.approx(float(image.mean()), rel=1e-6)
    assert means.image_to_text == pytest.approx(float(text.sum()) / num_pieces, rel=1e-6)
    weights_of = config.objective
    assert means.total == pytest.approx(
        weights_of.text_to_image_weight * means.text_to_image
        + weights_of.image_to_text_weight * means.image_to_text
    )
    rows = image.unflatten(1, (config.model.image_grid_size, -1)).mean(dim=(0, 2))
    assert means.by_image_row == pytest.approx(rows.tolist(), rel=1e-6)
    last = means.by_text_position[-1]
    is_there = whole.text[:, -1] != PADDING_ID
    expected = float(text[is_there, -1].mean()) if is_there.any() else None
    assert last == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_measuring_between_steps_changes_no_bit() -> None:
    ((history, _, weights),) = run_distributed(measure, 1, averaged(ONE_PROCESS), False)

    assert history == reference()[0]
    theirs = reference()[2]
    assert weights is not None
    assert theirs is not None
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights.items())


def test_the_average_differs_from_the_weights() -> None:
    _, (before, after, average), _ = reference()

    assert before != after
    assert after != average


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("row", "tolerance"),
    [
        (Row(tensor=1, pipeline=1, data=2), 1e-6),
        (Row(tensor=1, pipeline=1, data=4), 1e-6),
        pytest.param(Row(tensor=1, pipeline=1, data=8), 1e-6, marks=pytest.mark.slow),
        (Row(tensor=1, pipeline=1, data=2, variant=Variant(zero=2)), 1e-6),
        (Row(tensor=1, pipeline=1, data=2, variant=Variant(zero=3)), 1e-6),
        (Row(tensor=2, pipeline=1, data=1, variant=Variant(sequence_parallel=True)), 1e-5),
        (Row(tensor=1, pipeline=2, data=1), 1e-5),
        pytest.param(Row(tensor=2, pipeline=2, data=2), 1e-5, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.id if isinstance(value, Row) else "",
)
def test_every_layout_measures_the_same(row: Row, tolerance: float) -> None:
    size = math.prod(row.layout)
    ranks = run_distributed(measure, size, averaged(row))

    _, expected, _ = reference()
    for _, sums, _ in ranks:
        # Before training: forward passes alone. After it the updates differ in the last bits too.
        assert sums[0] == pytest.approx(expected[0], rel=tolerance)
        assert sums[1] == pytest.approx(expected[1], rel=1e-5)
        assert sums[2] == pytest.approx(expected[2], rel=1e-5)


@pytest.mark.distributed
def test_an_end_to_end_model_measures_its_pictures() -> None:
    variant = Variant(reconstructor="end_to_end")
    (alone,), pair = (
        run_distributed(
            measure,
            size,
            averaged(Row(tensor=1, pipeline=1, data=size, variant=variant)),
        )
        for size in (1, 2)
    )

    assert alone[1][0][1] > 0
    assert pair[0][1][0] == pytest.approx(alone[1][0], rel=1e-6)
