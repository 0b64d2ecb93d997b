"""All ranks skip the same faulty updates, and a skipped update changes nothing."""

import gc
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE, build_adamw, group_of
from ernie_vilg.parallel.engine.update_guard import (
    LEAST_DEVIATION,
    REASONS,
    Decision,
    guard_deepspeed,
    skip_reason,
    spike_limit,
    updated_statistics,
)
from ernie_vilg.parallel.engine.zero_shards import zero_shards
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import batches_of_step, run_config

GUARDS = GuardsConfig(spike_window=2, spike_deviations=10)
FP32, BF16 = torch.float32, torch.bfloat16
OFFLOAD, PIPELINE = "offload_optimizer", "pipeline_parallel_size"
TENSOR = "tensor_parallel_size"
PLAN = ("", "", "nan", "", "inf", "", "spike", "")
"""Fault to inject into each step of a run; empty: none."""


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def statistics_of(losses: list[float], config: GuardsConfig) -> Tensor:
    statistics = float64(0, 0, 0)
    for loss in losses:
        statistics = updated_statistics(statistics, float64(loss)[0], config)
    return statistics


def test_statistics_within_the_window_are_those_of_all_steps() -> None:
    statistics = statistics_of([2.0, 4.0, 9.0], GuardsConfig(spike_window=3))

    # Mean of 2, 4 and 9; squares of -3, -1 and 4 over three.
    assert statistics.tolist() == pytest.approx([3, 5, 26 / 3])


def test_statistics_beyond_the_window_forget() -> None:
    statistics = statistics_of([2.0, 4.0, 9.0], GuardsConfig(spike_window=2))

    # After 2 and 4: mean 3, variance 1. Then a = 1/2, d = 6: mean 6, variance (1 + 18) / 2.
    assert statistics.tolist() == pytest.approx([3, 6, 9.5])


@pytest.mark.parametrize(
    ("statistics", "config", "limit"),
    [
        pytest.param((100, 5, 0.25), GuardsConfig(), 5 + 10 * 0.5, id="ten deviations"),
        pytest.param(
            (100, 5, 0), GuardsConfig(), 5 + 10 * LEAST_DEVIATION * 5, id="a constant loss"
        ),
        pytest.param((99, 5, 0.25), GuardsConfig(), math.inf, id="before the window is full"),
        pytest.param(
            (100, 5, 0.25),
            GuardsConfig(spike_deviations=0),
            math.inf,
            id="no spike check",
        ),
    ],
)
def test_limit_of_a_spike(
    statistics: tuple[float, ...], config: GuardsConfig, limit: float
) -> None:
    assert spike_limit(float64(*statistics), config).item() == pytest.approx(limit)


@pytest.mark.parametrize(
    ("of_ranks", "loss", "reason"),
    [
        pytest.param([[2.0, 1.0], [2.0, 1.0]], 2.0, "", id="no fault"),
        pytest.param([[2.0, 1.0], [2.0, math.nan]], 2.0, "nan", id="gradient of one rank"),
        pytest.param([[math.nan, 1.0], [2.0, 1.0]], math.nan, "nan", id="loss of one rank"),
        pytest.param([[2.0, math.inf], [2.0, 1.0]], 2.0, "inf", id="an infinite gradient"),
        pytest.param([[-math.inf, 1.0], [math.nan, 1.0]], math.nan, "nan", id="both"),
        pytest.param([[9.0, 1.0], [9.0, 1.0]], 9.0, "spike", id="a loss above the limit"),
    ],
)
def test_reason_to_skip_an_update(of_ranks: list[list[float]], loss: float, reason: str) -> None:
    table = torch.tensor(of_ranks, dtype=torch.float64)

    code = skip_reason(table, float64(loss)[0], float64(8.0)[0])

    assert REASONS[int(code)] == reason


def test_a_skipped_step_changes_neither_weights_moments_steps_nor_average() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    settings = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    optimizer: Any = build_adamw(
        [group_of([weight], settings.weight_decay)], settings, ema_decay=0.5
    )
    for _ in range(2):
        weight.grad = torch.tensor([0.5, 1.0])
        optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    weights = weight.detach().clone()

    weight.grad = torch.tensor([math.nan, 1.0])
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()

    assert weight.equal(weights)
    assert set(before) == {"step", "exp_avg", "exp_avg_sq", WEIGHT_AVERAGE}
    for key, value in optimizer.state[weight].items():
        assert value.equal(before[key]), key


def test_an_average_starts_at_the_first_step_that_is_not_skipped() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    settings = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    optimizer: Any = build_adamw(
        [group_of([weight], settings.weight_decay)], settings, ema_decay=0.5
    )
    for found_inf in (1.0, 0.0):
        weight.grad = torch.tensor([1.0])
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()

    assert weight.item() != 1.0
    assert optimizer.state[weight][WEIGHT_AVERAGE].equal(weight.detach())


class ScalingOptimizer:
    """A fake of DeepSpeed's float16 optimizer at an overflow."""

    def __init__(self) -> None:
        weight = nn.Parameter(torch.ones(1))
        self.optimizer = torch.optim.AdamW([weight], fused=True)
        self.averaged_gradients = {0: [torch.tensor([math.inf])]}
        self.cpu_offload = False
        self.overflow = False
        self._global_grad_norm = math.inf

    def step(self) -> None:
        self.overflow = True


@pytest.mark.parametrize(
    ("scales_loss", "reason"),
    [
        pytest.param(True, "", id="float16: DeepSpeed lowers the loss scale"),
        pytest.param(False, "inf", id="a fault otherwise"),
    ],
)
def test_an_overflow_of_float16_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, scales_loss: bool, reason: str
) -> None:
    monkeypatch.setattr("torch.distributed.all_gather_into_tensor", lambda out, own: out.copy_(own))
    layout: Any = {"data_size": 1, "tensor_size": 1, "world_size": 1}
    groups: Any = SimpleNamespace(device=torch.device("cpu"), **layout)
    optimizer = ScalingOptimizer()
    guard = guard_deepspeed(
        zero_shards(optimizer, data_rank=0),
        groups,
        GUARDS,
        read_loss=lambda: torch.tensor(2.0),
        scales_loss=scales_loss,
    )

    guard.begin_step(1)
    optimizer.step()

    assert guard.last_decision().read().reason == reason


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One rank's observations of a run with faults."""

    decisions: list[Decision]
    """Decision about every step."""
    skips: list[float]
    """Value of `Engine.last_skip` after every step."""
    is_unchanged: list[bool]
    """Whether each step left the rank's weights and optimizer state unchanged, bit for bit."""
    losses: list[float]
    """Mean loss of every step."""


def faulty_runs(
    launch: Launch, runs: list[tuple[PretrainConfig, torch.dtype]], faulty_rank: int
) -> list[Observed]:
    """Train runs of one layout, and inject all faults into each on one rank."""
    device = start_processes(launch, timeout_seconds=60)
    layout = runs[0][0].parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    observed = []
    for config, precision in runs:
        engine = build_engine(config, groups, precision)
        observed.append(faulty_run(engine, is_faulty=launch.rank == faulty_rank))
        del engine
        gc.collect()
    return observed


def faulty_run(engine: Engine, *, is_faulty: bool) -> Observed:
    seen = Observed(decisions=[], skips=[], is_unchanged=[], losses=[])
    for fault in PLAN:
        before = [tensor.clone() for tensor in state_tensors(engine)]
        with injected(engine, fault if is_faulty else ""):
            losses = engine.train_batch(batches_of_step(engine, 0), learning_rate=1e-2)
        seen.decisions.append(engine.last_decision().read())
        seen.skips.append(engine.last_skip.item())
        seen.losses.append(engine.mean_losses(losses)[0].item())
        after = state_tensors(engine)
        is_same = len(before) == len(after) and all(
            one.equal(other) for one, other in zip(before, after, strict=False)
        )
        seen.is_unchanged.append(is_same)
        state = json.loads(json.dumps(engine.guard_state()))
        engine.load_guard_state(state)
        assert engine.guard_state() == state
    return seen


def state_tensors(engine: Engine) -> list[Tensor]:
    """Return this rank's weights in both precisions and its optimizer state."""
    base = engine.deepspeed_engine.optimizer.optimizer
    tensors = [
        getattr(parameter, "ds_tensor", parameter).detach()
        for _, parameter in engine.local_parameters()
    ]
    for weight, state in base.state.items():
        tensors += [weight.detach(), *(state[key] for key in sorted(state))]
    return tensors


@contextmanager
def injected(engine: Engine, fault: str) -> Iterator[None]:
    """Inject a fault into this rank's gradient or loss in the block."""
    if fault in ("nan", "inf"):
        # DeepSpeed's norm does not count gradients of unsplit parameters on tensor ranks above 0.
        parameter = next(
            value for name, value in engine.local_parameters() if split_dimension(name) is None
        )
        handle = parameter.register_hook(lambda gradient: torch.full_like(gradient, float(fault)))
        yield
        handle.remove()
    elif fault == "spike":
        holder: Any = getattr(engine, "_loss", engine)  # on the last stage of a pipeline
        objective = holder._objective
        holder._objective = lambda *arguments: ten_fold(objective(*arguments))
        yield
        holder._objective = objective
    else:
        yield


def ten_fold(losses: Any) -> Any:
    return replace(losses, total=10 * losses.total)


def observe(
    folder: Path, runs: list[tuple[dict[str, Any], torch.dtype]], faulty_rank: int
) -> list[list[Observed]]:
    """Return the observations of each run on all ranks."""
    configs = [
        (replace(run_config(folder, ema_decay=0.5, **layout), guards=GUARDS), precision)
        for layout, precision in runs
    ]
    ranks = run_distributed(faulty_runs, 2, configs, faulty_rank)
    return [list(of_run) for of_run in zip(*ranks, strict=True)]


def both(*layouts: dict[str, Any]) -> list[tuple[dict[str, Any], torch.dtype]]:
    return [(layout, precision) for layout in layouts for precision in (FP32, BF16)]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(
            [
                ({"zero_stage": 1}, BF16),
                ({"zero_stage": 2}, BF16),
                ({"zero_stage": 3}, FP32),
                ({OFFLOAD: True}, BF16),
            ],
            id="two replicas",
        ),
        pytest.param([({PIPELINE: 2}, BF16)], id="two stages"),
        pytest.param([({TENSOR: 2}, BF16)], id="two tensor ranks"),
        pytest.param(
            both(
                *({"zero_stage": zero, OFFLOAD: off} for zero in (1, 2, 3) for off in (False, True))
            ),
            id="two replicas, all engines",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            both({PIPELINE: 2}, {PIPELINE: 2, OFFLOAD: True}),
            id="two stages, all engines",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            both(*({TENSOR: 2, "zero_stage": zero} for zero in (1, 2, 3))),
            id="two tensor ranks, all engines",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_fault_of_one_rank_makes_all_skip_the_same_update(
    tmp_path: Path, runs: list[tuple[dict[str, Any], torch.dtype]]
) -> None:
    """NaN, infinity or a spike on one rank changes no rank's weights."""
    faulty_rank = 1  # DeepSpeed's norm does not count unsplit gradients there
    for of_run in observe(tmp_path, runs, faulty_rank):
        for seen in of_run:
            assert [decision.reason for decision in seen.decisions] == list(PLAN)
            assert seen.is_unchanged == [bool(reason) for reason in PLAN]
            assert seen.skips == [float(bool(reason)) for reason in PLAN]
            assert seen.decisions[0].limit == math.inf
            assert seen.decisions[1].loss == pytest.approx(seen.losses[1], rel=1e-6)
        first, second = of_run
        assert repr(first.decisions) == repr(second.decisions)
        assert first.decisions[2].ranks
