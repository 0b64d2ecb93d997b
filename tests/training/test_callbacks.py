"""Callbacks run between two steps, when they are due, and their results are tracked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.runs.observation import Observation
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.training import callbacks as callbacks_module
from ernie_vilg.training.callbacks import (
    BeforeFirstStep,
    Callback,
    Callbacks,
    OnWholeWeights,
    StepBoundary,
)
from tests.training.runs import tiny_run

GROUP: Any = object()
ENGINE: Any = object()


@dataclass
class Figures:
    """A callback that measures a number on every rank."""

    every: int
    phases: Phases
    phase: Phase = Phase.HEALTH
    calls: list[tuple[int, Phase]] = field(default_factory=list)

    def run(self, boundary: StepBoundary) -> Observation | None:
        self.calls.append((boundary.step, self.phases.now.phase))
        return Observation(metrics={"figure": 1.0}, pictures={}) if boundary.step < 4 else None


class Tracker:
    """A tracker that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log(self, step: int, metrics: Any) -> None:
        self.calls.append((step, metrics))

    def log_pictures(self, step: int, pictures: Any, captions: Any = None) -> None:
        self.calls.append((step, pictures, captions))

    def go_back(self, step: int) -> None:
        raise AssertionError("no callback goes back")

    def close(self) -> None:
        raise AssertionError("no callback closes it")


def callbacks_of(
    config: PretrainConfig, phases: Phases, tracker: Tracker, *parts: Callback
) -> Callbacks:
    return Callbacks(
        config=config,
        engine=ENGINE,
        callbacks=parts,
        tracker=tracker,
        phases=phases,
        should_stop=lambda: True,
        group=GROUP,
    )


@pytest.fixture
def barriers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the groups of the barriers that were reached."""
    groups: list[object] = []
    monkeypatch.setattr(callbacks_module, "barrier", groups.append)
    return groups


def test_a_callback_runs_in_its_phase_at_its_interval(
    tmp_path: Path, barriers: list[object]
) -> None:
    phases, tracker = Phases(), Tracker()
    often, never = Figures(2, phases), Figures(0, phases)
    callbacks = callbacks_of(tiny_run(tmp_path, steps=5), phases, tracker, often, never)

    for step in range(1, 6):
        callbacks.after_step(step)

    assert often.calls == [(2, Phase.HEALTH), (4, Phase.HEALTH)]
    assert never.calls == []
    assert tracker.calls == [(2, {"figure": 1.0})]  # no pictures; step 4 had no result
    assert barriers == [GROUP, GROUP]


@pytest.mark.parametrize(("steps_made", "calls"), [(0, [(0, Phase.HEALTH)]), (4, [])])
def test_the_work_before_the_first_step_is_not_repeated_when_a_run_resumes(
    tmp_path: Path, barriers: list[object], steps_made: int, calls: list[tuple[int, Phase]]
) -> None:
    phases = Phases()
    measured = Figures(2, phases)
    callbacks = callbacks_of(tiny_run(tmp_path, steps=5), phases, Tracker())
    callbacks.first = [BeforeFirstStep(callback=measured)]

    callbacks.at_start(steps_made)

    assert measured.calls == calls
    assert barriers == [GROUP]  # every rank waits, whether there was work or not


@pytest.mark.parametrize("is_leader", [True, False])
def test_only_the_leader_observes_whole_weights(
    tmp_path: Path, barriers: list[object], monkeypatch: pytest.MonkeyPatch, is_leader: bool
) -> None:
    weights = {"weight": torch.ones(1)} if is_leader else None
    monkeypatch.setattr(callbacks_module, "gather_to_leader", {ENGINE: weights}.__getitem__)
    config, tracker = tiny_run(tmp_path, steps=5), Tracker()
    picture = tmp_path / "picture.png"

    def observe(
        run: PretrainConfig, step: int, weights: dict[str, Tensor], should_stop: Any
    ) -> Observation:
        assert run is config
        assert (step, weights["weight"].tolist(), should_stop()) == (3, [1.0], True)
        return Observation(metrics={}, pictures={"a": picture}, captions={"a": "b"})

    draw = OnWholeWeights(every=3, phase=Phase.DRAW, observe=observe)
    callbacks_of(config, Phases(), tracker, draw).after_step(3)

    assert tracker.calls == ([(3, {"a": picture}, {"a": "b"}), (3, {})] if is_leader else [])
    assert barriers == [GROUP]
