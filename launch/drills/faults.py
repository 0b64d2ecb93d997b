"""Faults that are injected into a run from inside, once, at a named phase or point.

A drilled rank runs the production code; only its `Phases` object is replaced, by `FaultyPhases`,
which injects the fault.
"""

import json
import os
import resource
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ernie_vilg.config.schema import from_json
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json

_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "supervise")
_DELIVERY_SECONDS = 3.0
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: its kind, rank and time."""

    kind: str
    """signal: `target` receives `signal_name`; sleep: every step from `step` on takes `seconds`
    longer; nan_gradient: a gradient becomes NaN; one_ulp: a weight changes in its last bit;
    file_limit: no file may grow beyond `limit_bytes` until the next save."""
    rank: int
    """Faulty rank."""
    phase: str = ""
    """Phase at whose beginning the fault is injected; empty with `point`."""
    point: str = ""
    """Beginning of the name of the point at which the fault is injected."""
    step: int = 0
    """Earliest step of the fault, as `Phases` counts; the first occasion from there on."""
    is_of_one_step: bool = False
    """Whether `step` is also the latest step of the fault."""
    signal_name: str = ""
    """Name of the signal, such as SIGTERM."""
    target: str = "self"
    """self: the rank; launcher: the program that started the run, as a person would stop it;
    parents: every launcher process above the rank."""
    seconds: float = 0.0
    """Additional seconds per step."""
    limit_bytes: int = 0
    """Largest size of a file."""


def write_fault(path: Path, fault: Fault) -> None:
    """Write a fault to a file for the ranks of a run."""
    write_json(path, asdict(fault))


def read_fault(path: Path) -> Fault:
    """Read the file of `write_fault`."""
    return from_json(read_json(path), Fault, str(path))


def record_of(path: Path) -> Path:
    """Return the file that records when the fault in a file was injected."""
    return path.with_suffix(".injected")


class FaultyPhases(Phases):
    """Phases of a rank that inject faults."""

    def __init__(self, faults: Mapping[Path, Fault]) -> None:
        """Take the faults.

        Args:
            faults: faults by record file, which is written when the fault is injected; a fault
                whose file exists is not injected again.
        """
        super().__init__()
        self._faults = faults
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Take the engine, whose tensors a fault may change."""
        self._engine = engine

    def enter(self, phase: Phase, step: int) -> None:
        """Enter a phase, and inject the faults of its beginning."""
        super().enter(phase, step)
        for record, fault in self._faults.items():
            # A save in the background writes after its phase.
            is_next = phase in (Phase.SAVE, Phase.END) and record.exists()
            if fault.kind == "file_limit" and is_next:
                _lift_limit()
            if fault.phase == phase.value and self._is_time(fault, step):
                self._inject(fault, record)

    def point(self, name: str) -> None:
        """Pass a point, and inject its faults."""
        for record, fault in self._faults.items():
            if fault.point and name.startswith(fault.point) and self._is_time(fault, self.now.step):
                self._inject(fault, record)

    def _is_time(self, fault: Fault, step: int) -> bool:
        return step == fault.step if fault.is_of_one_step else step >= fault.step

    def _inject(self, fault: Fault, record: Path) -> None:
        if fault.kind == "sleep":
            time.sleep(fault.seconds)
        if record.exists():
            return
        record.write_text(json.dumps({"unix_seconds": time.time(), "step": self.now.step}))
        if fault.kind == "signal":
            _send(fault)
        if fault.kind == "nan_gradient":
            _make_nan(self._parameter())
        if fault.kind == "one_ulp":
            weight = self._parameter().detach().view(-1)
            weight.view(_BITS[weight.dtype])[0] += 1
        if fault.kind == "file_limit":
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit_bytes, hard))

    def _parameter(self) -> Tensor:
        assert self._engine is not None, "the engine is attached before the first step"
        return next(value for _, value in self._engine.local_parameters() if value.numel())


def _lift_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _send(fault: Fault) -> None:
    number = signal.Signals[fault.signal_name]
    if fault.target == "self":
        os.kill(os.getpid(), number)
        return
    launchers = _launchers()
    for process in launchers if fault.target == "parents" else launchers[-1:]:
        process.send_signal(number)
    # A small run makes many steps until the launcher has passed the signal on.
    time.sleep(_DELIVERY_SECONDS)


def _launchers() -> list[psutil.Process]:
    """Return the launchers above this process, the nearest first."""
    parents = psutil.Process().parents()
    return [
        parent
        for parent in parents
        if any(name in " ".join(parent.cmdline()) for name in _LAUNCHERS)
    ]


def _make_nan(parameter: Tensor) -> None:
    def make_nan(gradient: Tensor) -> Tensor:
        handle.remove()
        return gradient * float("nan")

    handle: Any = parameter.register_hook(make_nan)
