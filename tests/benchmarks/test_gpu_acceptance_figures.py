"""Stages of the acceptance run judge what the measuring processes answer."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_acceptance_parts import measurements
from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.measurements import PLAIN
from benchmarks.gpu_acceptance_parts.stages import StageError, figure
from benchmarks.support.measurer import Result

PLAIN_LOSSES = [10.0, 9.0, 8.0]


def context_that_answers(
    answer: Result, passed: dict[str, list[Result]] | None = None, card: str = "a card"
) -> Context:
    found = {PLAIN: [figure(PLAIN, 8.0, "nats", losses=PLAIN_LOSSES)], **(passed or {})}

    class Answering(Context):
        def ask(self, _task: Any, _limit_seconds: float) -> Result:
            return answer

    return Answering(
        work=Path("unused"),
        results=Path("unused"),
        card=card,
        preset=None,
        passed=lambda name: found.get(name, []),
    )


def losses_of(losses: list[float], **rest: Any) -> Result:
    return {"losses": losses, "graph_breaks": 0, **rest}


@pytest.mark.parametrize(
    ("losses", "task"),
    [
        pytest.param([10.0, 9.001, 8.0], {}, id="rounding"),
        pytest.param([10.05, 9.05, 8.05], {"linear_precision": "fp8"}, id="float8"),
        pytest.param([10.05, 5.0, 5.0], {"precision": "fp16"}, id="float16, later steps skipped"),
    ],
)
def test_losses_near_those_of_the_plain_engine_pass(losses: list[float], task: Result) -> None:
    (row,) = measurements.losses("mode", **task)(context_that_answers(losses_of(losses)), 60)

    assert row["value"] == losses[-1]


@pytest.mark.parametrize(
    ("answer", "task", "message"),
    [
        pytest.param(losses_of([10.0, 9.0, 8.1]), {}, "losses differ by 1.2e-02", id="apart"),
        pytest.param(losses_of([10.0, 9.0, float("nan")]), {}, "nan", id="not a number"),
        pytest.param(
            losses_of([11.0, 9.0, 8.0]), {"precision": "fp16"}, "1.0e-01", id="float16, first"
        ),
        pytest.param(losses_of(PLAIN_LOSSES, graph_breaks=2), {}, "2 graph breaks", id="breaks"),
    ],
)
def test_other_losses_fail(answer: Result, task: Result, message: str) -> None:
    with pytest.raises(StageError, match=message):
        measurements.losses("mode", **task)(context_that_answers(answer), 60)


def test_an_engine_that_resumes_to_other_losses_fails() -> None:
    answer = {"once": [1.0, 2.0], "again": [1.0, 2.5], "save_seconds": 0.1}

    with pytest.raises(StageError, match=r"\[1.0, 2.0\] became \[1.0, 2.5\]"):
        measurements.engine_resume("ZeRO 1")(context_that_answers(answer), 60)


def row_of(**changes: Any) -> Result:
    return {
        "seconds_per_step": 0.5,
        "tokens_per_second": 60_000.0,
        "mfu": 0.5,
        "peak_bytes": 100,
        "predicted_bytes": 101,
        **changes,
    }


def test_a_row_of_the_step_has_mfu_and_memory_on_a_gpu_alone() -> None:
    on_gpu = measurements.step_figures("8 x 2", row_of(), has_gpu=True)
    on_cpu = measurements.step_figures("8 x 2", row_of(), has_gpu=False)

    values = {row["metric"]: row["value"] for row in on_gpu}
    assert values["MFU, 8 x 2"] == 0.5
    assert values["ms per step, 8 x 2"] == 500
    assert values["planner's error, 8 x 2"] == pytest.approx(0.01)
    assert [row["metric"] for row in on_cpu] == ["ms per step, 8 x 2", "tokens per second, 8 x 2"]


def test_float8_is_compared_with_the_same_row_in_bfloat16() -> None:
    usual = measurements.step_figures("8 x 8", row_of(), has_gpu=True)
    answer = row_of(tokens_per_second=78_000.0)

    rows = measurements.fp8_step(context_that_answers(answer, {"step, 8 x 8": usual}), 60)

    assert (rows[0]["metric"], rows[0]["value"]) == ("FP8 over bf16, 8 x 8", 1.3)


def test_the_planner_is_judged_by_its_worst_row() -> None:
    passed = {
        "step, 8 x 2": measurements.step_figures("8 x 2", row_of(), has_gpu=True),
        "step, 4 x 4": measurements.step_figures("4 x 4", row_of(predicted_bytes=97), has_gpu=True),
    }

    (row,) = measurements.memory(context_that_answers({}, passed), 60)

    assert row["value"] == pytest.approx(0.03)
    assert row["rows"] == 2
    with pytest.raises(StageError, match="no row of the step"):
        measurements.memory(context_that_answers({}), 60)
