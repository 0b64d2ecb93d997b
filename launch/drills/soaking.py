"""Random faults, one after another, in one run.

After every 10 to 30 seconds of training a rank or its data worker is killed or frozen, a rank is
killed while it saves, the launcher gets a SIGTERM, a bit of the newest checkpoint flips, or a shard
is truncated. One step has a NaN in its gradient each time it is made. The same command resumes the
run each time.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ernie_vilg.checkpoint.folder import committed_checkpoints
from ernie_vilg.data.records.ledger import STEPS_NAME
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.shard_manifest import read_manifest
from launch.drills.faults import Fault
from launch.drills.runs import RANK_PROGRAM, DrilledRun

NAN_STEP = 20
"""Step whose gradient has a NaN."""

_QUIET_SECONDS = (10.0, 30.0)
_KINDS = (
    "kill_rank",
    "kill_in_save",
    "kill_worker",
    "freeze_rank",
    "freeze_worker",
    "sigterm",
    "flip_bit",
    "truncate_shard",
)
_SAVE_POINTS = ("save: before data", "save: before manifest", "save: before rename", "save: after")
_SHARED_MEMORY = Path("/dev/shm")


def nan_fault() -> Fault:
    """Return the fault that both runs have at the same step."""
    return Fault(kind="nan_gradient", rank=0, phase=Phase.STEP, step=NAN_STEP, is_of_one_step=True)


def stop_fault(steps: int) -> Fault:
    """Return the fault that stops a run after so many steps."""
    return Fault(kind="signal", rank=0, phase=Phase.STEP, step=steps, signal_name="SIGTERM")


class Soak:
    """One run and its faults."""

    def __init__(self, run: DrilledRun, shards: Path, seed: int) -> None:
        """Prepare a soak.

        Args:
            run: the run.
            shards: folder of the run's shards, which are damaged and restored.
            seed: seed of the faults and their times.
        """
        self.run = run
        self.faults: Counter[str] = Counter()
        self.started = time.time()
        self.ended = self.started
        self.shared_memory_before = set(_SHARED_MEMORY.iterdir())
        self._shards = shards
        self._random = random.Random(seed)

    def inject_for(self, seconds: float) -> None:
        """Inject faults for so many seconds, then stop the run in order."""
        while time.time() < self.started + seconds:
            # Each kind once before any is repeated.
            for kind in self._random.sample(_KINDS, len(_KINDS)):
                if time.time() < self.started + seconds:
                    self._inject(kind)
        self._launch("the end", _send_to_launcher)
        self.ended = time.time()

    def _inject(self, kind: str) -> None:
        self.faults[kind] += 1
        if kind == "kill_rank":
            self._launch(kind, self._to_one_of(_ranks_of, signal.SIGKILL))
        elif kind == "kill_worker":
            self._launch(kind, self._to_one_of(_workers_of, signal.SIGKILL))
        elif kind == "freeze_rank":
            self._launch(kind, self._to_one_of(_ranks_of, signal.SIGSTOP))
        elif kind == "freeze_worker":
            self._launch(kind, self._to_one_of(_workers_of, signal.SIGSTOP))
        elif kind == "sigterm":
            self._launch(kind, _send_to_launcher)
        elif kind == "kill_in_save":
            self._launch(kind, _send_to_launcher, self._death_in_save())
        elif kind == "truncate_shard":
            self._without_end_of_shard(lambda: self._launch(kind, _send_to_launcher))
        else:
            self._launch(kind, self._to_one_of(_ranks_of, signal.SIGKILL))
            self._flip_bit()

    def _launch(self, kind: str, act: Callable[[int], None], *faults: Fault) -> None:
        quiet = self._random.uniform(*_QUIET_SECONDS)
        waiting = _AfterQuiet(self.run, quiet, act)
        launch = self.run.launch(*faults, nan_fault(), meanwhile=waiting)
        print(
            f"{time.time() - self.started:6.0f} s  {kind:<15} exit code {launch.return_code:>4}, "
            f"newest checkpoint of step {self.run.newest_step()}, "
            f"{launch.num_orphans} processes left",
            flush=True,
        )

    def _to_one_of(
        self, find: Callable[[int], list[psutil.Process]], number: signal.Signals
    ) -> Callable[[int], None]:
        def send(launcher: int) -> None:
            found = find(launcher)
            if found:
                self._random.choice(found).send_signal(number)

        return send

    def _death_in_save(self) -> Fault:
        steps = self.run.newest_step() if self.run.launches else 0
        return Fault(
            kind="signal",
            rank=0,  # the one that commits
            point=self._random.choice(_SAVE_POINTS),
            step=steps + self._random.randrange(50, 150),
            signal_name="SIGKILL",
        )

    def _flip_bit(self) -> None:
        if len(committed_checkpoints(self.run.run_dir)) < 2:
            return
        file = self._random.choice(sorted(self.run.newest().rglob("*.pt")))
        content = bytearray(file.read_bytes())
        content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
        file.write_bytes(content)

    def _without_end_of_shard(self, launch: Callable[[], None]) -> None:
        shards = read_manifest(self._shards, "token").shards
        file = self._shards / self._random.choice(shards).file
        whole = file.read_bytes()
        file.write_bytes(whole[: self._random.randrange(len(whole))])
        try:
            launch()
        finally:
            file.write_bytes(whole)


class _AfterQuiet:
    """Calls a function once, so many seconds after the first step of a launch."""

    def __init__(self, run: DrilledRun, seconds: float, act: Callable[[int], None]) -> None:
        self._ledger = RunFolder(run.run_dir).ledger / STEPS_NAME
        self._size = self._size_now()
        self._seconds = seconds
        self._act = act
        self._since: float | None = None
        self._is_done = False

    def __call__(self, launcher: int) -> None:
        if self._since is None and self._size_now() > self._size:
            self._since = time.monotonic()
        if self._is_done or self._since is None:
            return
        if time.monotonic() - self._since >= self._seconds:
            self._is_done = True
            self._act(launcher)

    def _size_now(self) -> int:
        return self._ledger.stat().st_size if self._ledger.exists() else 0


def result_of(soak: Soak, undisturbed: DrilledRun) -> dict[str, Any]:
    """Return the assertions and figures of a soak as JSON values, and as `lines` to print."""
    run = soak.run
    seconds = soak.ended - soak.started
    steps = run.newest_step()
    step_seconds = _step_seconds(run)
    goodput = steps * step_seconds / seconds
    bound = 1 - sum(_cost_of_launches(run, step_seconds)) / seconds
    left = sorted(
        [str(path) for path in set(_SHARED_MEMORY.iterdir()) - soak.shared_memory_before]
        + [str(path) for path in run.run_dir.rglob(".writing-*")]
    )
    claims = {
        "both runs stopped at the same step": undisturbed.newest_step() == steps,
        "every sample of every step was used once": run.positions() == undisturbed.positions(),
        "every tensor at the end is equal": run.state_digest() == undisturbed.state_digest(),
        "no process was left": not any(launch.num_orphans for launch in run.launches),
        f"no file was left {left}": not left,
        f"goodput {goodput:.2f} is at least {bound:.2f}": goodput >= bound,
    }
    faults = ", ".join(f"{count} x {kind}" for kind, count in sorted(soak.faults.items()))
    return {
        "passed": all(claims.values()),
        "steps": steps,
        "goodput": goodput,
        "goodput_bound": bound,
        "faults": dict(soak.faults),
        "claims": claims,
        "lines": [
            f"{steps} steps in {seconds:.0f} s under {sum(soak.faults.values())} faults: {faults}",
            *(f"{'pass' if holds else 'FAIL'}  {claim}" for claim, holds in claims.items()),
        ],
    }


def _step_seconds(run: DrilledRun) -> float:
    """Return the median seconds of a step, without its share of saving."""
    return float(np.median(np.diff(run.step_times())))


def _cost_of_launches(run: DrilledRun, step_seconds: float) -> list[float]:
    """Return the most seconds that each launch may lose.

    A launch may lose the time before its first step and after its last, the steps since its last
    checkpoint, and as much again because checkpoints and busy cores slow steps down.
    """
    times = run.step_times()
    interval = run.config.checkpoint.every * step_seconds
    costs = []
    for launch in run.launches:
        own = [made for made in times if launch.started_at <= made <= launch.exited_at]
        trained = own[-1] - own[0] if own else 0.0
        costs.append(launch.seconds - trained + interval + 0.5 * trained)
    return costs


def _send_to_launcher(launcher: int) -> None:
    psutil.Process(launcher).send_signal(signal.SIGTERM)


def _ranks_of(launcher: int) -> list[psutil.Process]:
    # A launcher has the same arguments, but further back.
    return _descendants(launcher, lambda arguments: RANK_PROGRAM in arguments[:3])


def _workers_of(launcher: int) -> list[psutil.Process]:
    """Return the data workers of all ranks, which are forks of their fork server."""
    servers = _descendants(launcher, lambda found: any("forkserver" in each for each in found))
    ids = {process.pid for process in servers}
    return [process for process in servers if process.ppid() in ids]


def _descendants(launcher: int, is_wanted: Callable[[Sequence[str]], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            arguments = process.cmdline()
        except psutil.Error:
            continue  # the process ended meanwhile
        if is_wanted(arguments):
            found.append(process)
    return found
