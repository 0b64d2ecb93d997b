"""Stage functions that ask a measuring process: correctness of the engine, speed, memory."""

import math
import shutil
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.stages import CutError, NotHereError, StageError, figure
from benchmarks.support.measurer import Result, answers_within

StageFunction = Callable[[Context, float], list[Result]]

PLAIN = "losses, plain"
"""Stage whose losses the other modes must reproduce."""
TOLERANCE = 2e-3
"""Relative difference of a loss between two modes in bfloat16; an H100 showed 1e-4."""
FLOAT8_TOLERANCE = 1e-2
"""Relative difference of a loss whose linear layers compute in float8."""
FLOAT16_TOLERANCE = 1e-2
"""Relative difference of the first loss in float16. Later steps may be skipped by the scaler."""
TRACE_NAME = "trace.json.gz"
"""File of the profiled step in the working folder."""
GIB = 2**30


def losses(mode: str, **task: Any) -> StageFunction:
    """Return the stage function that holds a mode's losses against those of the plain engine."""

    def run(context: Context, limit: float) -> list[Result]:
        if task.get("compile") and not context.has_gpu and shutil.which("g++") is None:
            raise NotHereError("needs a GPU or a C++ compiler")
        found = context.ask({"probe": "losses", **task}, limit)
        rows = [figure(f"losses, {mode}", found["losses"][-1], "nats", **found)]
        if not all(map(math.isfinite, found["losses"])):
            raise StageError(f"losses {found['losses']}", rows)
        if found["graph_breaks"]:
            raise StageError(f"{found['graph_breaks']} graph breaks", rows)
        if f"losses, {mode}" != PLAIN:
            _compare(found["losses"], context, rows, task)
        return rows

    return run


def _compare(found: list[float], context: Context, rows: list[Result], task: Result) -> None:
    is_float16 = task.get("precision") == "fp16"
    (plain,) = context.passed(PLAIN)
    count = 1 if is_float16 else len(found)
    pairs = list(zip(found[:count], plain["losses"][:count], strict=True))
    difference = max(abs(one - other) / abs(other) for one, other in pairs)
    rows[0]["difference"] = difference
    allowed = FLOAT16_TOLERANCE if is_float16 else TOLERANCE
    if task.get("linear_precision") == "fp8":
        allowed = FLOAT8_TOLERANCE
    if difference > allowed:
        raise StageError(
            f"losses differ by {difference:.1e} of plain's; {allowed:.0e} allowed", rows
        )


def engine_resume(name: str, **task: Any) -> StageFunction:
    """Return the stage function that saves, goes on, loads, and goes on again."""

    def run(context: Context, limit: float) -> list[Result]:
        found = context.ask({"probe": "resume", **task}, limit)
        rows = [figure(f"engine resumes, {name}", found["save_seconds"], "s to save", **found)]
        if found["once"] != found["again"]:
            raise StageError(f"losses {found['once']} became {found['again']}", rows)
        return rows

    return run


def host_waits(context: Context, limit: float) -> list[Result]:
    """Count the waits of the host in a step."""
    found = context.ask({"probe": "waits"}, limit)
    return [figure("host waits per step", found["waits"], "waits", **found)]


def drawing(name: str, *, precision: str, temperature: float) -> StageFunction:
    """Return the stage function that times slots of 60 candidates, 8 layers of the 10B shape."""

    def run(context: Context, limit: float) -> list[Result]:
        size = {"layers": 2, "candidates": 4, "first": 5, "last": 25}
        if context.has_gpu:
            size = {"layers": 8, "candidates": 60, "first": 20, "last": 120}
        task = {"probe": "drawing", "precision": precision, "temperature": temperature, **size}
        found = context.ask(task, limit)
        return [figure(f"drawing, {name}", found["ms"], "ms per slot", **found)]

    return run


def step(
    name: str, micro_batch: int, passes: int, *, compiled: bool = True, **options: Any
) -> StageFunction:
    """Return the stage function of a row of the training step.

    Args:
        name: name of the row.
        micro_batch: pairs per pass.
        passes: passes per step.
        compiled: whether blocks are compiled; a rehearsal on a CPU compiles none.
        options: further options of the row, such as `linear_precision`.
    """

    def run(context: Context, limit: float) -> list[Result]:
        row = {
            "layers": 6,
            "attention": "sparse",
            "checkpointing": "none",
            "compile": compiled,
            "micro_batch": micro_batch,
            "accumulation": passes,
            "repeats": 3,
            **options,
        }
        if not context.has_gpu:
            row |= {"layers": 3, "compile": False, "micro_batch": 1, "repeats": 1}
            row["accumulation"] = min(passes, 2)
        if row.pop("with_trace", False):
            row["trace"] = str(context.work / TRACE_NAME)
        found = context.ask({"probe": "step", "options": row}, limit)
        return step_figures(name, found, has_gpu=context.has_gpu)

    return run


def step_figures(name: str, found: Result, *, has_gpu: bool) -> list[Result]:
    """Return the figures of a row of the training step; MFU and memory only of a GPU."""
    rate = figure(f"tokens per second, {name}", found["tokens_per_second"], "tokens/s", **found)
    rows = [
        figure(f"ms per step, {name}", 1000 * found["seconds_per_step"], "ms"),
        {key: value for key, value in rate.items() if key != "kernels"},
    ]
    if has_gpu:
        error = found["predicted_bytes"] / found["peak_bytes"] - 1
        rows.insert(0, figure(f"MFU, {name}", found["mfu"], ""))
        rows.append(figure(f"peak memory, {name}", found["peak_bytes"] / GIB, "GiB"))
        rows.append(figure(f"planner's error, {name}", error, ""))
    if "kernels" in found:
        rows.append(figure(f"kernels, {name}", len(found["kernels"]), "kernels", **found))
    return rows


def fp8_step(context: Context, limit: float) -> list[Result]:
    """Measure the row of 8 x 8 with FP8 linear layers, against that in bfloat16."""
    rows = step("8 x 8, FP8", 8, 8, linear_precision="fp8")(context, limit)
    usual = {row["metric"]: row["value"] for row in context.passed("step, 8 x 8")}
    fast = {row["metric"]: row["value"] for row in rows}
    ratio = fast["tokens per second, 8 x 8, FP8"] / usual["tokens per second, 8 x 8"]
    return [figure("FP8 over bf16, 8 x 8", ratio, "x"), *rows]


def memory(context: Context, limit: float) -> list[Result]:
    """Return the largest error of the planner's memory over the rows that passed.

    A rehearsal measures one small layout on the CPU instead.
    """
    if not context.has_gpu:
        from benchmarks.plan_memory import compare, measure_row
        from benchmarks.plan_memory_parts.rows import ROWS

        row = ROWS[1]
        error = abs(compare(row, max(measure_row(row)), "cpu").error)
        return [figure("error of the planner's memory", error, "", rows=1)]
    errors = [
        abs(row["value"])
        for name in STEP_ROWS
        for row in context.passed(name)
        if row["metric"].startswith("planner's error")
    ]
    if not errors:
        raise StageError("no row of the step has passed")
    return [figure("error of the planner's memory", max(errors), "", rows=len(errors))]


STEP_ROWS = ("step, 8 x 2", "step, 8 x 8", "step, 4 x 4", "step, 4 x 4, eager", "step, FP8")
"""Stages that measure the training step."""


def attention_options(context: Context, limit: float) -> list[Result]:
    """Measure attention along rows under several options of its kernel."""
    only = "flex, row" if context.has_gpu else "dense, three"
    task = {"section": "attention", "pairs": 4 if context.has_gpu else 1, "only": only}
    rows, failed = [], []
    for found in answers_within("train_step_parts.measure", task, limit):
        if "failed" in found:
            failed.append(f"{found.get('kind', 'the rest')}: {found['failed']}")
        else:
            name = f"attention, {found['kind']}"
            rows.append(figure(name, 1000 * found["seconds"], "ms", bytes=found["bytes"]))
    if not rows:
        raise StageError("; ".join(failed) or "no answer")
    if any("not done after" in line for line in failed):
        raise CutError("; ".join(failed), rows)
    return [*rows, *({"refused": line} for line in failed)]
