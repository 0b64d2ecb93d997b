"""Norms by kind of parameter are those of the whole tensors, on every layout."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.statistics import StatisticsConfig
from ernie_vilg.observers.step_statistics import StatisticsOfSteps, figures
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.parallel.state.step_statistics import StepStatistics, kind_of
from ernie_vilg.training.callbacks import StepBoundary
from tests.distributed import run_distributed
from tests.parallel.parity import LEARNING_RATE, MODEL, Row, Variant, config_of, micro_batches

TOLERANCE = 1e-5  # sums in another order, in float32
MEASURED_STEP = 3

Result = tuple[dict[str, Any], float, dict[str, Any]]
"""Figures of a step, its gradient's norm, and on one process norm and ratio of whole tensors."""


def config_with(row: Row) -> PretrainConfig:
    config = config_of(row)
    return replace(config, optimizer=replace(config.optimizer, weight_decay=0.1))


def measured_all(launch: Launch, rows: Sequence[Row]) -> list[Result]:
    """Return the results of runs of one layout, one after another."""
    device = start_processes(launch, timeout_seconds=120)
    groups = build_groups(rows[0].tensor, rows[0].pipeline, device)
    return [measured(groups, row) for row in rows]


def measured(groups: Groups, row: Row) -> Result:
    config = config_with(row)
    engine = build_engine(config, groups, torch.float32)
    callback = StatisticsOfSteps(StatisticsConfig(every=MEASURED_STEP, by_layer=True))
    whole: dict[str, Any] = {}
    for step in range(1, MEASURED_STEP + 1):
        before = [weight.detach().clone() for _, weight in engine.local_parameters()]
        calls = [vars(layer).get("_compiled_call_impl") for layer in layers_of(engine)]
        with callback.around(engine, step):
            engine.train_batch(micro_batches(groups, config, step), LEARNING_RATE)
        assert calls == [vars(layer).get("_compiled_call_impl") for layer in layers_of(engine)]
        assert "apply" not in vars(engine.update)
        if groups.world_size == 1:
            whole = norms_of_whole(engine, before)
    boundary = StepBoundary(
        config=config, engine=engine, step=MEASURED_STEP, should_stop=lambda: False
    )
    return dict(callback.run(boundary).metrics), engine.gradient_norm(), whole


def layers_of(engine: Any) -> list[torch.nn.Module]:
    return list(engine.deepspeed_engine.module.children())


def norms_of_whole(engine: Any, before: list[torch.Tensor]) -> dict[str, Any]:
    """Return norms and ratio by kind, from the weights before and after the step."""
    sums: dict[int, list[float]] = {}
    pairs = zip(engine.local_parameters(), before, strict=True)
    for (name, weight), old in pairs:
        both = sums.setdefault(kind_of(name, MODEL), [0.0, 0.0])
        both[0] += float(weight.detach().double().square().sum())
        both[1] += float((weight.detach().double() - old.double()).square().sum())
    return {str(kind): (math.sqrt(a), math.sqrt(b / a)) for kind, (a, b) in sums.items()}


@lru_cache(maxsize=1)
def of_one_process() -> dict[str, Result]:
    """Return the results of one process by the name of the model's further settings."""
    variants = [Variant(), Variant(extra="tied embeddings")]
    rows = [Row(tensor=1, pipeline=1, data=1, variant=variant) for variant in variants]
    (results,) = run_distributed(measured_all, 1, rows)
    return {row.variant.extra: result for row, result in zip(rows, results, strict=True)}


def flat(metrics: dict[str, Any]) -> list[float]:
    values = [metrics[name] for name in sorted(metrics)]
    return [part for value in values for part in (value if isinstance(value, list) else [value])]


@pytest.mark.distributed
def test_norms_are_those_of_the_whole_tensors() -> None:
    metrics, gradient_norm, whole = of_one_process()[""]

    kinds = ["embedding", "attention", "feed_forward", "norms", "head"]
    assert [name for name in metrics if name.startswith("statistics/weight_norm/")] == [
        f"statistics/weight_norm/{kind}" for kind in kinds
    ]
    for index, kind in enumerate(kinds):
        weight, ratio = whole[str(index)]
        assert metrics[f"statistics/weight_norm/{kind}"] == pytest.approx(weight, rel=TOLERANCE)
        # Differences of weights in float32 have fewer digits than the update itself.
        assert metrics[f"statistics/update_ratio/{kind}"] == pytest.approx(ratio, rel=1e-3)
    by_kind = [metrics[f"statistics/gradient_norm/{kind}"] for kind in kinds]
    assert math.hypot(*by_kind) == pytest.approx(gradient_norm, rel=TOLERANCE)
    by_layer = metrics["statistics/gradient_norm_by_layer"]
    assert len(by_layer) == MODEL.num_layers + 2
    assert math.hypot(*by_layer) == pytest.approx(gradient_norm, rel=TOLERANCE)
    largest = metrics["statistics/largest_activation"]
    assert len(largest) == MODEL.num_layers + 1
    assert all(value > 0 for value in largest)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "variants"),
    [
        pytest.param((2, 1, 1), [Variant(sequence_parallel=True)], id="tensor 2"),
        pytest.param((1, 2, 1), [Variant(extra="tied embeddings")], id="pipeline 2, tied"),
        pytest.param(
            (1, 1, 2),
            [Variant(), Variant(zero=2), Variant(zero=3, checkpointing="full")],
            id="data 2, ZeRO 1 to 3",
        ),
        pytest.param(
            (2, 1, 2),
            [Variant(extra="tied embeddings"), Variant(zero=3), Variant(offload=True)],
            id="tensor 2, data 2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_layout_has_the_figures_of_one_process(
    layout: tuple[int, int, int], variants: list[Variant]
) -> None:
    tensor, pipeline, data = layout
    rows = [Row(tensor=tensor, pipeline=pipeline, data=data, variant=each) for each in variants]

    ranks = run_distributed(measured_all, math.prod(layout), rows)

    for rank in ranks:
        for row, (metrics, _, _) in zip(rows, rank, strict=True):
            expected, _, _ = of_one_process()[row.variant.extra]
            assert metrics.keys() == expected.keys(), row.id
            assert flat(metrics) == pytest.approx(flat(expected), rel=TOLERANCE), row.id


def skipped(launch: Launch) -> dict[str, Any]:
    config = config_with(Row(tensor=1, pipeline=1, data=1))
    device = start_processes(launch, timeout_seconds=120)
    groups = build_groups(1, 1, device)
    engine = build_engine(config, groups, torch.float32)
    statistics = StepStatistics(engine)
    for step in range(2):
        batches = micro_batches(groups, config, step)
        if step == 1:
            bias = dict(engine.local_parameters())["2.feed_forward.up.bias"]
            bias.register_hook(lambda gradient: gradient * math.nan)
        with statistics.measuring():
            engine.train_batch(batches, LEARNING_RATE)
    assert engine.last_skip == 1
    return figures(statistics.reduce(), by_layer=False)


@pytest.mark.distributed
def test_a_skipped_update_is_zero_and_its_gradient_is_no_number() -> None:
    (metrics,) = run_distributed(skipped, 1)

    assert metrics["statistics/update_ratio/attention"] == 0.0
    assert math.isnan(metrics["statistics/gradient_norm/feed_forward"])
