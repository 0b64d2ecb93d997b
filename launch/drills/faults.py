"""Faults that strike a run from inside, at a named place, once.

A drilled rank runs the very code of a training rank. Only what hears of its whereabouts is
another: `FaultyPhases` strikes when the rank comes to where the fault waits.

Source: ours.
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
    """What happens, to whom, and where."""

    kind: str
    """signal: `signal_name` is sent to `target`; sleep: every step from `step` on takes `seconds`
    longer; nan_gradient: a gradient becomes NaN; one_ulp: a weight changes in its last bit;
    file_limit: no file may grow beyond `limit_bytes` until the next save."""
    rank: int
    """The rank it happens on."""
    phase: str = ""
    """Phase at whose beginning it happens; empty where `point` says when."""
    point: str = ""
    """Beginning of the name of the point at which it happens."""
    step: int = 0
    """First step at which it may happen, as `Phases` counts; it happens at the first occasion."""
    is_of_one_step: bool = False
    """Whether it happens at no later step than that."""
    signal_name: str = ""
    """Such as SIGTERM."""
    target: str = "self"
    """self: the rank; launcher: the program that started the run, as a person would stop it;
    parents: every launcher process above the rank."""
    seconds: float = 0.0
    """How much longer a step takes."""
    limit_bytes: int = 0
    """Size at which files stop growing."""


def write_fault(path: Path, fault: Fault) -> None:
    """Write a fault where the ranks of a run read it."""
    write_json(path, asdict(fault))


def read_fault(path: Path) -> Fault:
    """Read what `write_fault` wrote."""
    return from_json(read_json(path), Fault, str(path))


class FaultyPhases(Phases):
    """Whereabouts of a rank that a fault waits for."""

    def __init__(self, faults: Mapping[Path, Fault]) -> None:
        """Wait.

        Args:
            faults: what will happen, by the file that says when it happened; while the file is
                there, it does not happen again.
        """
        super().__init__()
        self._faults = faults
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Take the engine whose tensors a fault may change."""
        self._engine = engine

    def enter(self, phase: Phase, step: int) -> None:
        """Say what comes next, and strike if this is the place."""
        super().enter(phase, step)
        for record, fault in self._faults.items():
            # What a save writes in the background is written after its phase.
            is_next = phase in (Phase.SAVE, Phase.END) and record.exists()
            if fault.kind == "file_limit" and is_next:
                _lift_limit()
            if fault.phase == phase.value and self._is_time(fault, step):
                self._strike(fault, record)

    def point(self, name: str) -> None:
        """Pass a point, and strike if this is the place."""
        for record, fault in self._faults.items():
            if fault.point and name.startswith(fault.point) and self._is_time(fault, self.now.step):
                self._strike(fault, record)

    def _is_time(self, fault: Fault, step: int) -> bool:
        return step == fault.step if fault.is_of_one_step else step >= fault.step

    def _strike(self, fault: Fault, record: Path) -> None:
        if fault.kind == "sleep":
            time.sleep(fault.seconds)
        if record.exists():
            return
        record.write_text(json.dumps({"unix_seconds": time.time(), "step": self.now.step}))
        if fault.kind == "signal":
            _send(fault)
        if fault.kind == "nan_gradient":
            _spoil_gradient(self._parameter())
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
    # A small run makes many steps until what the launcher passes on arrives.
    time.sleep(_DELIVERY_SECONDS)


def _launchers() -> list[psutil.Process]:
    """Return the launcher processes above this one, the nearest first."""
    parents = psutil.Process().parents()
    return [
        parent
        for parent in parents
        if any(name in " ".join(parent.cmdline()) for name in _LAUNCHERS)
    ]


def _spoil_gradient(parameter: Tensor) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        handle.remove()
        return gradient * float("nan")

    handle: Any = parameter.register_hook(spoil)
