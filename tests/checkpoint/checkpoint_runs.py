"""Checkpoints of an engine whose state is a few tensors, without DeepSpeed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.committer import RunFacts
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.runs.phases import Phases

IDENTITY = {"model": {"hidden_size": 16}}
LAYOUT = {"zero_stage": 1}


class FakeEngine:
    """An engine whose state is one number, which fills two files per rank."""

    def __init__(self, rank: int = 0, world_size: int = 1, size: int = 8) -> None:
        self.groups = SimpleNamespace(rank=rank, world_size=world_size, device=torch.device("cpu"))
        self.weights = torch.zeros(size)
        self.moments = torch.zeros(size)

    @property
    def state(self) -> int:
        assert torch.equal(self.weights, self.moments), "half of a state"
        return int(self.weights[0])

    @state.setter
    def state(self, value: int) -> None:
        self.weights.fill_(value)
        self.moments.fill_(value)

    def save(self, snapshot: Snapshot) -> None:
        rank = self.groups.rank
        snapshot.take(f"state/weights_{rank}.pt", {"weights": self.weights})
        snapshot.take(f"state/moments_{rank}.pt", [self.moments])

    def load(self, folder: Path) -> None:
        rank = self.groups.rank
        self.weights = torch.load(folder / f"state/weights_{rank}.pt")["weights"]
        (self.moments,) = torch.load(folder / f"state/moments_{rank}.pt")


class AtPoint(Phases):
    """Runs an action at the first point whose name has a given beginning."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        super().__init__()
        self.arm(name, action)

    def arm(self, name: str, action: Callable[[], None]) -> None:
        """Set the action and its point; an empty name disarms."""
        self._name = name
        self._action = action

    def point(self, name: str) -> None:
        if self._name and name.startswith(self._name):
            self._name = ""
            self._action()


def checkpoints_of(
    run_dir: Path,
    *,
    identity: Mapping[str, Any] = IDENTITY,
    layout: Mapping[str, Any] = LAYOUT,
    phases: Phases | None = None,
    **settings: Any,
) -> Checkpoints:
    return Checkpoints(
        run_dir,
        CheckpointConfig(**{"every": 10, "asynchronous": False, **settings}),
        RunFacts(
            identity_at=lambda step: identity,
            data_at=lambda step: {"position": step},
            layout=layout,
            config_hash="of all settings",
        ),
        phases or Phases(),
    )


def save(checkpoints: Checkpoints, step: int, *, size: int = 8, state: Any = None) -> None:
    """Save an engine whose state is the step."""
    engine: Any = FakeEngine(size=size)
    engine.state = step
    checkpoints.save(engine, step, state=state)


def saved_run(run_dir: Path, steps: tuple[int, ...] = (0, 10, 20), **settings: Any) -> Checkpoints:
    checkpoints = checkpoints_of(run_dir, **settings)
    for step in steps:
        save(checkpoints, step)
    checkpoints.finish()
    return checkpoints


def restored(run_dir: Path, **settings: Any) -> tuple[int, int]:
    """Return the step that a new start resumes from, and the state it finds."""
    engine: Any = FakeEngine()
    checkpoints = checkpoints_of(run_dir, **settings)
    step = checkpoints.restore(engine)
    checkpoints.finish()  # superseded checkpoints are removed in a thread
    return step, engine.state
