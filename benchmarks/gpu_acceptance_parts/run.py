"""One call of the acceptance run: versions, inputs, stages, summary."""

import os
import sys
import time
from pathlib import Path

from benchmarks.gpu_acceptance_parts.context import Context, card_preset
from benchmarks.gpu_acceptance_parts.halves import GOALS, STAGES
from benchmarks.gpu_acceptance_parts.inputs import ARCHIVE, CARRIED, make_inputs, unpack
from benchmarks.gpu_acceptance_parts.programs import INPUTS
from benchmarks.gpu_acceptance_parts.runner import Runner, to_do
from benchmarks.gpu_acceptance_parts.stages import Record, Stage
from benchmarks.gpu_acceptance_parts.state import STATE_NAME, State, fingerprint
from benchmarks.gpu_acceptance_parts.summary import (
    is_green,
    line,
    publish,
    text_of,
    verdict,
)
from benchmarks.support.measurer import Result

_VERSIONS_SECONDS = 120.0


def run(
    work: Path, results: Path, *, half: int | None, seconds: float, needs_card: bool, is_fresh: bool
) -> int:
    """Run the stages of a half, or of both; return the exit status.

    Args:
        work: folder of runs, caches and logs.
        results: folder of the files to take home.
        half: 1 or 2; None runs both.
        seconds: time budget.
        needs_card: whether a machine without a GPU is refused.
        is_fresh: whether the ends of earlier calls are forgotten.
    """
    started = time.monotonic()
    cache = work / "inductor"
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=str(cache), TRITON_CACHE_DIR=str(cache / "triton"))
    carried = CARRIED / STATE_NAME if needs_card and not is_fresh else None
    state = State(work / STATE_NAME, fingerprint(), carried=carried)
    context = Context(work=work, results=results, card="", preset=None, passed=state.passed)
    versions = context.ask({"probe": "versions"}, _VERSIONS_SECONDS)
    context.close_lanes()
    print(", ".join(f"{name} {value}" for name, value in versions.items() if value), flush=True)
    context.card = versions["card"]
    if needs_card and not context.has_gpu:
        print("no CUDA device here: GPU=0 rehearses every stage on the CPU", file=sys.stderr)
        return 2
    context.preset = card_preset(context.card) if context.has_gpu else None
    provide_inputs(context)
    asked = [stage for stage in STAGES if half in (None, stage.half)]
    goals = [goal for goal in GOALS if half in (None, goal.half)]
    about = {**versions, "code": state.code, "preset": context.preset or "none"}

    def report(stage: Stage, record: Record) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {line(stage, record)}", flush=True)
        _write(context, state, about)

    left = seconds - (time.monotonic() - started)
    Runner(context=context, state=state, seconds=left, report=report).run(
        to_do(STAGES, state, context, half)
    )
    large = _write(context, state, about)
    print("\n" + text_of(asked, state, goals, about, has_gpu=context.has_gpu))
    print(f"{time.monotonic() - started:.0f} s; files: {results}")
    if large:
        print(f"left out, too large to be given back: {', '.join(large)}")
    green = is_green(asked, state, goals, has_gpu=context.has_gpu)
    print(verdict(asked, state, green=green))
    return 0 if green else 1


def provide_inputs(context: Context) -> None:
    """Unpack the carried inputs of the programs; without any, a rehearsal makes small ones.

    Raises:
        SystemExit: a machine with a GPU has none.
    """
    folder = context.work / INPUTS
    if ARCHIVE.exists():
        unpack(ARCHIVE, folder)
    elif context.has_gpu:
        print(f"{ARCHIVE} is missing: make it with `make gpu-acceptance-inputs`", file=sys.stderr)
        raise SystemExit(2)
    else:
        make_inputs(folder, is_toy=True)


def _write(context: Context, state: State, about: Result) -> list[str]:
    """Write all files, so that a call that is killed leaves them too."""
    text = text_of(STAGES, state, GOALS, about, has_gpu=context.has_gpu)
    return publish(context, text)
