"""The fuzzer: deals cases out to workers, keeps what they find, and writes the table.

Every case is named by a seed, a target and a number, and comes out the same whenever it is run.
"""

import contextlib
import json
import os
import pickle
import select
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tests.fuzz import (
    data_targets,
    model_targets,
    remote_target,
    run_targets,
    source_targets,
    text_targets,
)
from tests.fuzz.target import Outcome, Special, Target, place
from tests.fuzz.worker import SECONDS, Result, fork

TARGETS = [
    *data_targets.TARGETS,
    *source_targets.TARGETS,
    *run_targets.TARGETS,
    *model_targets.TARGETS,
    *text_targets.TARGETS,
    *remote_target.TARGETS,
]
_GRACE_SECONDS = 5.0
"""After which a worker that its own alarm did not stop is killed."""
_START_SECONDS = 120.0
_KEPT = 3
"""Inputs that are kept of each cause."""


@dataclass(kw_only=True)
class Finding:
    """Something that ended as nothing may."""

    target: str
    cause: str
    detail: str
    seed: int
    cases: list[int] = field(default_factory=list)
    """Numbers of the first cases that it came of."""
    count: int = 0


@dataclass(kw_only=True)
class Row:
    """One line of the table."""

    target: str
    mutations: int = 0
    refused: int = 0
    counted: int = 0
    valid: int = 0
    findings: int = 0
    peak_mb: int = 0
    slowest_ms: int = 0

    def add(self, result: Result) -> None:
        """Count a case."""
        self.mutations += 1
        if result.outcome is None:
            self.findings += 1
        else:
            setattr(self, result.outcome, getattr(self, result.outcome) + 1)
        self.peak_mb = max(self.peak_mb, result.growth >> 20)
        self.slowest_ms = max(self.slowest_ms, round(1000 * result.seconds))


@dataclass(kw_only=True)
class _Lane:
    """A worker that runs."""

    target: Target
    process_id: int
    pipe: BinaryIO
    last: int | None = None
    """Case that has begun and not ended."""
    heard: float = field(default_factory=time.monotonic)
    is_hung: bool = False


class Fuzzer:
    """All targets, and what is known of them."""

    def __init__(self, targets: Sequence[Target], seed: int, folder: Path | None) -> None:
        """Take the targets.

        Args:
            targets: with their originals.
            seed: of all cases.
            folder: gets the inputs of findings; None keeps none.
        """
        self._targets = targets
        self._seed = seed
        self._folder = folder
        self._next = {target.name: 0 for target in targets}
        self.rows = {target.name: Row(target=target.name) for target in targets}
        self.findings: dict[tuple[str, str], Finding] = {}

    def run(
        self, *, seconds: float, workers: int, slice_seconds: float, cases: int | None = None
    ) -> None:
        """Run cases of all targets in turn, of each for one turn at least.

        Args:
            seconds: after which no worker is started.
            workers: processes at a time.
            slice_seconds: of one worker's life.
            cases: of each target, at most; None takes each target's own `quick`.
        """
        end = time.monotonic() + seconds
        waiting = deque(self._targets)
        lanes: list[_Lane] = []
        while lanes or waiting:
            while waiting and len(lanes) < workers:
                target = waiting.popleft()
                first, most = self._next[target.name], target.quick if cases is None else cases
                if first < most and (not first or time.monotonic() < end):
                    process_id, pipe = fork(target, self._seed, first, most - first, slice_seconds)
                    lanes.append(_Lane(target=target, process_id=process_id, pipe=pipe))
            ready, _, _ = select.select([lane.pipe for lane in lanes], [], [], 0.5)
            ended = [lane for lane in lanes if not self._attend(lane, is_ready=lane.pipe in ready)]
            lanes = [lane for lane in lanes if lane not in ended]
            waiting.extend(lane.target for lane in ended)

    def _attend(self, lane: _Lane, *, is_ready: bool) -> bool:
        """Take in what a worker says; return whether it goes on."""
        if is_ready:
            try:
                message = pickle.load(lane.pipe)
            except (EOFError, pickle.UnpicklingError):
                return self._bury(lane)
            lane.heard = time.monotonic()
            if isinstance(message, str):
                raise RuntimeError(f"the worker of {lane.target.name} cannot work:\n{message}")
            if isinstance(message, int):
                lane.last = message
            else:
                self._enter(lane.target, message)
                self._next[lane.target.name] = message.index + 1
                lane.last = None
            return True
        limit = SECONDS + _GRACE_SECONDS if lane.last is not None else _START_SECONDS
        if time.monotonic() - lane.heard > limit:
            lane.is_hung = True
            os.kill(lane.process_id, signal.SIGKILL)
        return True

    def _bury(self, lane: _Lane) -> bool:
        lane.pipe.close()
        _, status = os.waitpid(lane.process_id, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(lane.process_id, signal.SIGKILL)  # what it had started itself
        if lane.last is not None:
            cause = f"the worker died: {_ending(status)}"
            if lane.is_hung:
                cause = f"Hang: no answer in {SECONDS + _GRACE_SECONDS:g} s, not even to an alarm"
            self._enter(lane.target, Result(index=lane.last, outcome=None, cause=cause))
            self._next[lane.target.name] = lane.last + 1
        return False

    def _enter(self, target: Target, result: Result) -> None:
        self.rows[target.name].add(result)
        if result.outcome is not None:
            return
        finding = self.findings.setdefault(
            (target.name, result.cause),
            Finding(target=target.name, cause=result.cause, detail=result.detail, seed=self._seed),
        )
        finding.count += 1
        if len(finding.cases) < _KEPT:
            finding.cases.append(result.index)
            if self._folder is not None:
                name = f"{target.name.replace(' ', '_')}-{self._seed}-{result.index}"
                keep(target, self._seed, result.index, self._folder / name)


def keep(target: Target, seed: int, index: int, folder: Path) -> None:
    """Write the damaged files of a case into a folder."""
    files = target.case(seed, index)
    # A file of 4 GB would be copied whole by careless tools.
    place(folder, {name: b"" if kind is Special.HUGE else kind for name, kind in files.items()})


def prepare(targets: Sequence[Target]) -> None:
    """Make the undamaged files of all targets.

    A process of its own does so: it may leave threads behind, which a fork of this one must not
    copy.
    """
    read_end, write_end = os.pipe()
    process_id = os.fork()
    if not process_id:
        code = 1
        try:
            with os.fdopen(write_end, "wb") as out:
                pickle.dump([dict(target.files()) for target in targets], out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        content = pipe.read()
    os.waitpid(process_id, 0)
    for target, files in zip(targets, pickle.loads(content), strict=True):
        target.originals = files


def table(rows: Sequence[Row]) -> str:
    """Return the table as text."""
    names = (
        "target",
        "mutations",
        "refused",
        "counted",
        "valid",
        "findings",
        "peak MB",
        "slowest ms",
    )
    total = Row(target="all")
    for row in rows:
        for name in ("mutations", *Outcome, "findings"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        total.peak_mb = max(total.peak_mb, row.peak_mb)
        total.slowest_ms = max(total.slowest_ms, row.slowest_ms)
    lines = [names, *(tuple(map(str, asdict(row).values())) for row in (*rows, total))]
    return "\n".join(
        f"{line[0]:<22}" + "".join(f"{cell:>12}" for cell in line[1:]) for line in lines
    )


def report(fuzzer: Fuzzer, seconds: float, seed: int) -> dict[str, Any]:
    """Return everything that is known, as JSON values."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "mutations": sum(row.mutations for row in fuzzer.rows.values()),
        "rows": [asdict(row) for row in fuzzer.rows.values()],
        "findings": [asdict(finding) for finding in fuzzer.findings.values()],
        "causes": dict(Counter(finding.cause for finding in fuzzer.findings.values())),
    }


def findings_text(fuzzer: Fuzzer) -> str:
    """Return the findings, a few lines each."""
    return "\n".join(
        f"{finding.target}: {finding.cause} ({finding.count} times)\n"
        f"  seed {finding.seed}, cases {finding.cases}\n  {finding.detail}"
        for finding in sorted(fuzzer.findings.values(), key=lambda found: -found.count)
    )


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit code {os.WEXITSTATUS(status)}"
