"""The summary (passed, failed, ratio to each goal), and the files to take home."""

import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.halves import Goal
from benchmarks.gpu_acceptance_parts.measurements import TRACE_NAME
from benchmarks.gpu_acceptance_parts.programs import WHOLE
from benchmarks.gpu_acceptance_parts.stages import Record, Stage, Status
from benchmarks.gpu_acceptance_parts.state import STATE_NAME, State
from benchmarks.support import tables
from benchmarks.support.measurer import Result
from benchmarks.support.results import Requirement

MOST_FILES = 8
"""Largest number of files that a rented machine gives back."""
MOST_BYTES = 16 * 2**20
"""Largest size of one of them."""
_SHOWN_FIGURES = 3


def shown(row: Result) -> str:
    """Return a figure as words; a figure without unit is a share."""
    if "refused" in row:
        return f"refused: {row['refused']}"
    value, unit = row["value"], row["unit"]
    text = f"{100 * value:.1f} %" if not unit else f"{value:,.4g} {unit}"
    return f"{row['metric']}: {text}"


def line(stage: Stage, record: Record) -> str:
    """Return the end of a stage as one line of the log."""
    parts = [record.reason] if record.reason else []
    parts += [shown(row) for row in record.rows]
    return f"{record.status:10} {stage.name} ({record.seconds:.0f} s): {'; '.join(parts)}"


def is_green(
    stages: Sequence[Stage], state: State, goals: Sequence[Goal], *, has_gpu: bool
) -> bool:
    """Return whether all stages passed and all goals are reached.

    On a CPU no goal counts, and stages that need a GPU are left to it. An optional stage must not
    fail.

    Args:
        stages: the stages that were asked for.
        state: how they ended.
        goals: goals of their halves.
        has_gpu: whether this was no rehearsal.
    """
    for stage in stages:
        accepted: set[Status | None] = {Status.PASSED}
        if not has_gpu:
            accepted.add(Status.NOT_HERE)
        if stage.is_optional:
            accepted |= {Status.SKIPPED, Status.CUT}
        if state.status(stage.name) not in accepted:
            return False
    return not has_gpu or all(_is_reached(goal, state) for goal in goals)


def _is_reached(goal: Goal, state: State) -> bool:
    requirement = requirement_of(goal, state)
    return requirement is not None and requirement.is_reached


def requirement_of(goal: Goal, state: State) -> Requirement | None:
    """Return a goal with its measured figure; None if it was not measured."""
    found = state.figures().get(goal.metric)
    if found is None:
        return None
    scale = 1 if goal.unit else 100  # shares are shown in %
    return Requirement(
        what=goal.metric,
        value=scale * found["value"],
        bound=scale * goal.bound,
        unit=goal.unit or "%",
        is_lower_better=goal.is_lower_better,
    )


def text_of(
    stages: Sequence[Stage], state: State, goals: Sequence[Goal], versions: Result, *, has_gpu: bool
) -> str:
    """Return the whole summary in Markdown."""
    title = "GPU acceptance" if has_gpu else "GPU acceptance, rehearsed on the CPU at toy size"
    about = ", ".join(f"{name} {value}" for name, value in versions.items() if value != "")
    lines = [
        f"# {title}",
        "",
        about,
        "",
        tables.header(["stage", "half", "status", "s", "figures"]),
    ]
    for stage in stages:
        record = state.record(stage.name)
        if record is None:
            lines.append(tables.row([stage.name, str(stage.half), "not run", "", ""]))
            continue
        figures = [shown(row) for row in record.rows][:_SHOWN_FIGURES]
        words = "; ".join([*filter(None, [record.reason]), *figures]).replace("|", "/")
        cells = [stage.name, str(stage.half), str(record.status), f"{record.seconds:.0f}", words]
        lines.append(tables.row(cells))
    lines += ["", *goal_lines(state, goals, has_gpu=has_gpu), "", *counts(stages, state)]
    return "\n".join(lines) + "\n"


def goal_lines(state: State, goals: Sequence[Goal], *, has_gpu: bool) -> list[str]:
    """Return a line per goal, with the ratio of its figure to it."""
    if not has_gpu:
        return ["A rehearsal reaches no goal: it shows that every stage runs."]
    lines = ["Goals:", ""]
    for goal in goals:
        requirement = requirement_of(goal, state)
        words = f"{goal.metric}: NOT MEASURED" if requirement is None else requirement.line()
        lines.append(f"- {words}")
    return lines


def counts(stages: Sequence[Stage], state: State) -> list[str]:
    """Return the number of stages by status, those that failed, and stages of other code."""
    ends = {stage.name: state.record(stage.name) for stage in stages}
    status_of = {name: record.status if record else "not run" for name, record in ends.items()}
    number = {status: list(status_of.values()).count(status) for status in status_of.values()}
    lines = [", ".join(f"{count} {status}" for status, count in number.items()) + "."]
    failed = [name for name, status in status_of.items() if status is Status.FAILED]
    lines += [f"Failed: {'; '.join(failed)}."] if failed else []
    left = [
        stage.name
        for stage in stages
        if stage.is_optional and status_of[stage.name] in {Status.SKIPPED, Status.CUT}
    ]
    lines += [f"Optional, and not run to the end: {'; '.join(left)}."] if left else []
    older = of_other_code(stages, state)
    if older:
        lines.append(f"Measured with other code than {state.code}: {'; '.join(older)}.")
    return lines


def of_other_code(stages: Sequence[Stage], state: State) -> list[str]:
    """Return the names of stages that ended with other code than that of now."""
    records = {stage.name: state.record(stage.name) for stage in stages}
    return [name for name, record in records.items() if record and record.code != state.code]


def verdict(stages: Sequence[Stage], state: State, *, green: bool) -> str:
    """Return the last line of a call."""
    if not green:
        return "NOT GREEN"
    if of_other_code(stages, state):
        return "ALL GREEN, in part with other code than this: FRESH=1 repeats everything"
    return "ALL GREEN"


def publish(context: Context, text: str) -> list[str]:
    """Write the files to take home; return the names of those that are too large and left out."""
    folder = context.results
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    _copy(context.work / STATE_NAME, folder / STATE_NAME)
    _copy(context.work / WHOLE / "metrics.jsonl", folder / "metrics.jsonl")
    _copy(context.work / TRACE_NAME, folder / TRACE_NAME)
    samples = sorted((context.work / WHOLE / "samples").glob("step_*.png"))
    if samples:
        _copy(samples[-1], folder / "samples.png")
    with tarfile.open(folder / "logs.tar.gz", "w:gz") as archive:
        for log in sorted((context.work / "logs").glob("*.log")):
            archive.add(log, log.name)
    return drop_large(folder.iterdir())


def drop_large(files: Iterable[Path]) -> list[str]:
    """Remove files that a rented machine would not give back; return their names."""
    files = sorted(files)
    assert len(files) <= MOST_FILES, [path.name for path in files]
    large = [path for path in files if path.stat().st_size > MOST_BYTES]
    for path in large:
        path.unlink()
    return [path.name for path in large]


def _copy(source: Path, target: Path) -> None:
    if source.exists():
        shutil.copyfile(source, target)
