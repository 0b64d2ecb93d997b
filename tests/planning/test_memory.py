"""Predicted memory equals the bytes that ranks allocate, and follows the layout."""

from dataclasses import replace
from threading import Timer
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.plan_memory import LIMIT, compare, compare_stages
from benchmarks.plan_memory_parts.rank import awaited_sums, measure
from benchmarks.plan_memory_parts.rows import GPU_ROWS, MODEL, ROWS, Row
from ernie_vilg.planning.engine_memory import StageState, moments
from ernie_vilg.planning.memory import estimate_memory
from ernie_vilg.planning.workload import COPIED, COPIED_AT_ONCE
from tests.distributed import run_distributed

SMALL = replace(MODEL, num_layers=2, text_vocab_size=512, codebook_size=256)
FAST = [ROWS[1], ROWS[9]]
"""One rank; and tensor and sequence parallelism with selective checkpointing."""


def state(num_parameters: int = 100, **changes: Any) -> StageState:
    settings: dict[str, Any] = {
        "precision": torch.bfloat16,
        "zero_stage": 1,
        "data_size": 4,
        "num_micro_batches": 2,
        "has_pipeline": False,
        "has_average": False,
        "is_offloaded": False,
        "largest_parameter": 10,
    }
    settings["num_trained"] = num_parameters
    return StageState(num_parameters=num_parameters, **{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, (200, 400, 300), id="ZeRO 1 shares the optimizer; sums are float32"),
        pytest.param({"gradients": COPIED}, (200, 600, 300), id="DeepSpeed keeps 16-bit gradients"),
        pytest.param({"gradients": COPIED_AT_ONCE}, (200, 400, 300), id="and frees them at once"),
        pytest.param({"zero_stage": 2}, (200, 100, 300), id="2 gradients"),
        pytest.param({"zero_stage": 3}, (50, 100, 300), id="3 weights"),
        pytest.param({"precision": torch.float16}, (200, 200, 300), id="fp16 gradients are fp16"),
        pytest.param({"precision": torch.float32}, (400, 400, 300), id="fp32 has two copies"),
        pytest.param({"has_average": True}, (200, 400, 400), id="an average is one more"),
        pytest.param(
            {"is_offloaded": True, "zero_stage": 2},
            (200, 100, 0),
            id="offloaded state is on host",
        ),
        pytest.param({"num_trained": 8}, (200, 32, 24), id="of 8 of them, the others are frozen"),
        pytest.param({"num_trained": 8, "zero_stage": 3}, (50, 8, 24), id="and under ZeRO 3"),
    ],
)
def test_bytes_of_100_parameters_on_4_replicas(
    changes: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    backward = moments(state(**changes))[0]

    assert (backward.weights, backward.gradients, backward.optimizer) == expected


def test_an_offloaded_optimizer_is_in_host_memory() -> None:
    state_on_host = moments(state(is_offloaded=True, zero_stage=2))[0].host

    # 25 parameters: fp32 weights and two moments, their gradients, bf16 weights; a buffer of 10.
    assert state_on_host == 25 * (12 + 4 + 2) + 2 * 10


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"activation_checkpointing": "full"}, {"activation_checkpointing": "selective"}),
        ({"activation_checkpointing": "selective"}, {}),
        ({"micro_batch_size": 2}, {}),
        ({"tensor_parallel_size": 2}, {}),
        ({"tensor_parallel_size": 2, "sequence_parallel": True}, {"tensor_parallel_size": 2}),
    ],
)
def test_what_saves_activations_is_estimated_lower(
    less: dict[str, Any], more: dict[str, Any]
) -> None:
    def peak_in_backward(micro_batch_size: int = 8, **layout: Any) -> int:
        row = Row(
            name="",
            world_size=8,
            global_batch_size=128,
            micro_batch_size=micro_batch_size,
            layout=layout,
            precision="bf16",
        )
        found = estimate_memory(row.config, 8, torch.bfloat16)[0]
        return found.activations + found.logits

    assert peak_in_backward(**less) < peak_in_backward(**more)


def test_the_first_stage_keeps_the_most_micro_batches() -> None:
    row = Row(
        name="",
        world_size=2,
        precision="bf16",
        layout={"pipeline_parallel_size": 2},
        model=replace(MODEL, num_layers=16),
    )

    first, last = estimate_memory(row.config, 2, torch.bfloat16)

    assert first.activations > 1.5 * last.activations


def test_a_gpu_keeps_no_attention_scores() -> None:
    row = Row(name="", world_size=1, model=SMALL, precision="bf16")

    on_cpu, on_gpu = (
        estimate_memory(row.config, 1, torch.bfloat16, device)[0] for device in ("cpu", "cuda")
    )

    # Per block: float32 scores of 2 x 4 sequences, 6 heads, and their copy in bf16.
    assert on_cpu.activations - on_gpu.activations > 8 * 6 * 160**2 * (4 + 2)


def test_each_stage_is_compared_with_its_worst_rank() -> None:
    layout = {"pipeline_parallel_size": 2}
    row = Row(name="two", world_size=4, precision="bf16", layout=layout, model=SMALL)

    first, second = compare_stages(row, [10, 20, 40, 30], "cpu")

    assert (first.name, first.measured) == ("two: stage 1 of 2", 20)
    assert (second.name, second.measured) == ("two: stage 2 of 2", 40)


def test_a_sum_is_measured_only_when_no_other_thread_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[Tensor] = []

    def as_gloo_does(tensor: Tensor) -> None:
        held.append(tensor * tensor)  # its graph holds the factors outside Python
        Timer(0.1, held.clear).start()

    monkeypatch.setattr(dist, "all_reduce", as_gloo_does)
    tensor = torch.zeros(2, requires_grad=True)
    holders = tensor._use_count()  # type: ignore[attr-defined]

    with awaited_sums():
        dist.all_reduce(tensor)

    assert tensor._use_count() == holders  # type: ignore[attr-defined]


@pytest.mark.distributed
@pytest.mark.parametrize("row", FAST, ids=lambda row: row.name)
def test_two_layouts_take_what_is_predicted(row: Row) -> None:
    check(row, use_gpu=False)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("row", [row for row in ROWS if row not in FAST], ids=lambda row: row.name)
def test_all_layouts_take_what_is_predicted(row: Row) -> None:
    check(row, use_gpu=False)


@pytest.mark.gpu
@pytest.mark.parametrize("row", GPU_ROWS, ids=lambda row: row.name)
def test_shapes_on_a_gpu_take_what_is_predicted(row: Row) -> None:
    check(row, use_gpu=True)


def check(row: Row, *, use_gpu: bool) -> None:
    device_type = "cuda" if use_gpu else "cpu"
    peaks = run_distributed(measure, row.world_size, row.config, use_gpu=use_gpu)

    comparisons = [compare(row, max(peaks), device_type), *compare_stages(row, peaks, device_type)]

    assert all(abs(each.error) <= LIMIT for each in comparisons), comparisons
