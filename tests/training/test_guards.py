"""Skipped updates are counted and recorded; too many send the run back."""

import logging
import math
from collections import deque
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.records.skipped_updates import read_skips
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.parallel.engine.update_guard import Decision
from ernie_vilg.parallel.state.compare_replicas import Difference, ReplicaReport
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.training.guards import (
    ReplicaMismatch,
    RollBack,
    RunGuard,
    describe,
    skip_line,
    skip_writer,
)
from ernie_vilg.training.replica_batches import ReplicaBatches
from tests.data.token_shards import sequence_of, write_token_shards
from tests.distributed import run_distributed
from tests.training.runs import start, tiny_run

GOOD = Decision(reason="", loss=2.0, limit=3.0, gradient_norm=1.0, ranks=())
SPIKE = replace(GOOD, reason="spike", loss=4.0)
NAN = Decision(reason="nan", loss=math.nan, limit=3.0, gradient_norm=math.inf, ranks=(1,))
CONFIG = GuardsConfig(max_skips=2, max_rollbacks=1)


class ScriptedEngine:
    """An engine with given decisions."""

    def __init__(self, *verdicts: Decision, device: str = "cpu") -> None:
        self._verdicts = deque(verdicts)
        self.groups = type("Groups", (), {"rank": 0, "device": torch.device(device)})()
        self.losses: dict[str, float] = {"mean": 0.1}

    def last_decision(self) -> Any:
        verdict = self._verdicts.popleft()
        return type("Pending", (), {"read": lambda self: verdict})()

    def guard_state(self) -> dict[str, float]:
        return self.losses

    def load_guard_state(self, state: dict[str, float]) -> None:
        self.losses = state


def guard_of(*verdicts: Decision, device: str = "cpu", config: GuardsConfig = CONFIG) -> RunGuard:
    engine: Any = ScriptedEngine(*verdicts, device=device)
    return RunGuard(engine, config)


def test_one_skip_more_than_max_skips_in_a_row_sends_the_run_back() -> None:
    guard = guard_of(GOOD, SPIKE, SPIKE, GOOD, SPIKE, NAN, NAN)
    for step in range(1, 7):
        guard.after_step(step)

    with pytest.raises(RollBack) as raised:
        guard.after_step(7)

    assert (raised.value.step, raised.value.reason) == (7, "nan")
    assert guard.num_skips == 5


def test_a_launch_that_went_back_too_often_stops_and_says_what_to_do() -> None:
    guard = guard_of(NAN, NAN, config=replace(CONFIG, max_skips=0))
    with pytest.raises(RollBack):
        guard.after_step(1)
    guard.load_state({})

    with pytest.raises(FloatingPointError, match=r"step 2: .*max_rollbacks.*quarantine\.jsonl"):
        guard.after_step(2)


def test_a_gpu_is_asked_about_the_step_before() -> None:
    """The host goes on ahead of the GPU."""
    guard = guard_of(NAN, NAN, NAN, GOOD, device="cuda")
    for step in (1, 2, 3):
        guard.after_step(step)
    assert guard.num_skips == 2

    with pytest.raises(RollBack) as raised:
        guard.after_step(4)

    assert raised.value.step == 3


def test_saved_state_has_the_last_verdict_in_it_too() -> None:
    guard = guard_of(NAN, SPIKE, device="cuda")
    guard.after_step(1)
    guard.after_step(2)

    assert guard.state() == {"skips_in_a_row": 2, "skips": 2, "losses": {"mean": 0.1}}


def test_a_resumed_run_goes_back_when_an_uninterrupted_one_would() -> None:
    before = guard_of(SPIKE, SPIKE)
    before.after_step(1)
    before.after_step(2)
    after = guard_of(SPIKE)
    after.load_state(before.state())

    with pytest.raises(RollBack):
        after.after_step(3)


def test_a_checkpoint_of_too_many_skips_does_not_send_the_run_back_at_once() -> None:
    guard = guard_of(GOOD)
    guard.load_state({"skips_in_a_row": 3, "skips": 3, "losses": {}})

    guard.after_step(4)


def test_after_a_planned_change_of_the_data_losses_are_judged_anew() -> None:
    engine: Any = ScriptedEngine(GOOD, GOOD, GOOD)
    guard = RunGuard(engine, CONFIG, planned_changes=[2])

    guard.after_step(1)
    assert engine.losses == {"mean": 0.1}
    guard.after_step(2)
    assert engine.losses == {}
    engine.losses = {"mean": 5.0}
    guard.after_step(3)
    assert engine.losses == {"mean": 5.0}


def test_replicas_are_compared_as_often_as_is_said() -> None:
    often = guard_of(config=replace(CONFIG, replica_check_every=3))
    never = guard_of(config=replace(CONFIG, replica_check_every=0))

    assert [step for step in range(1, 8) if often.is_check_due(step)] == [3, 6]
    assert not any(never.is_check_due(step) for step in range(1, 8))


def test_lines_for_people() -> None:
    assert skip_line(7, SPIKE) == (
        "step 7: the update is skipped, the loss jumped to 4.0000, above the limit of 3.0000"
    )
    assert skip_line(7, NAN) == (
        "step 7: the update is skipped, the loss or a gradient is not a number (on rank 1)"
    )


def test_a_mismatch_names_ranks_and_parameters() -> None:
    ranks = {rank: f"rank {rank} = tensor {rank}, pipeline 0, data 0 on host" for rank in range(4)}
    settled = Difference(name="3.norm.bias", kind="weight", holders=(0, 1, 2, 3), suspects=(2,))
    open_vote = Difference(name="1.up.weight", kind="weight", holders=(0, 1), suspects=(0, 1))

    text = describe(ReplicaReport(differences=(open_vote, settled), ranks=ranks), step=50)
    unsettled = describe(ReplicaReport(differences=(open_vote,), ranks=ranks), step=50)

    assert "step 50" in text
    assert f"weight 3.norm.bias: {ranks[2]} differs from 3 others" in text
    assert "1.up.weight" not in text  # the majority says which is wrong
    assert f"no majority says which is wrong: {ranks[0]} and {ranks[1]}" in unsettled


def spoiled_run(
    launch: Launch, config: PretrainConfig
) -> tuple[list[int], str, list[torch.Tensor], list[torch.Tensor]]:
    """Train until the guard sends the run back; rank 1's loss is not a number from step 3 on.

    Returns:
        the steps that were made, what the guard said, and the weights after step 2 and at the end.
    """
    engine: Any = start(launch, config, torch.float32)
    shards = Path(config.data.token_shards)
    sequence = sequence_of(
        shards, read_manifest(shards, "token"), config.model, loader=config.data.loader
    )
    writer = skip_writer(
        RunFolder(Path(config.run_dir)).ledger,
        sequence,
        engine.groups,
        config.batch_sizes,
    )
    assert writer is not None, "every rank is a replica"
    batches = ReplicaBatches(config, sequence, engine.groups, writer.recent)
    guard, objective, weights = RunGuard(engine, config.guards, writer), engine._objective, []
    with closing(batches):
        for step in range(1, 11):
            if step == 3:
                weights = [value.detach().clone() for _, value in engine.local_parameters()]
                if launch.rank == 1:
                    engine._objective = lambda *arguments: times_nan(objective(*arguments))
            engine.train_batch(batches.at(step), learning_rate=1e-2)
            try:
                guard.after_step(step)
            except RollBack as error:
                after = [value.detach().clone() for _, value in engine.local_parameters()]
                return [step], str(error), weights, after
    raise AssertionError("the guard let the run go on")


def times_nan(losses: Any) -> Any:
    return replace(losses, total=losses.total * math.nan)


@pytest.mark.distributed
def test_a_loss_that_is_no_number_on_one_rank_is_bounded_and_written_down(tmp_path: Path) -> None:
    """All ranks skip the same steps, name the same samples, and go back."""
    write_token_shards(tmp_path / "shards", [20, 20])
    config = replace(tiny_run(tmp_path, steps=10), guards=replace(CONFIG, spike_deviations=0))

    first, second = run_distributed(spoiled_run, 2, config)

    assert first[:2] == second[:2] == ([5], "step 5: the loss or a gradient is not a number")
    for before, after, other in zip(first[2], first[3], second[3], strict=True):
        assert before.equal(after)
        assert before.equal(other)
    skips = read_skips(RunFolder(Path(config.run_dir)).ledger)
    assert [(skip.step, skip.first_position) for skip in skips] == [
        (step, 8 * (step - 1) + first) for step in (3, 4, 5) for first in (0, 4)
    ]
    assert {(skip.reason, skip.loss, skip.num_positions) for skip in skips} == {("nan", None, 4)}
    assert all(1 in skip.ranks for skip in skips)
    keys = [sample.key for skip in skips for sample in skip.samples]
    assert keys == keys_in_order(tmp_path / "shards", config, np.arange(16, 40))


def keys_in_order(shards: Path, config: PretrainConfig, positions: np.ndarray) -> list[str]:
    """Return the keys of the samples at positions, read from their texts."""
    reader = SampleReader(sequence_of(shards, read_manifest(shards, "token"), config.model))
    with closing(reader):
        return [f"{text[0] - 4:08d}" for text in reader.read(positions).content.text.tolist()]


def test_a_mismatch_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = Difference(name="1.up.weight", kind="weight", holders=(0, 1), suspects=(0, 1))
    report = ReplicaReport(differences=(difference,), ranks={0: "rank 0", 1: "rank 1"})
    monkeypatch.setattr("ernie_vilg.training.guards.check_replicas", lambda engine: report)

    with pytest.raises(ReplicaMismatch, match=r"rank 0 and rank 1"):
        guard_of().check_replicas(100)


def test_the_leader_says_once_that_an_update_was_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = guard_of(NAN)
    with caplog.at_level(logging.WARNING):
        guard.after_step(1)

    assert caplog.messages == [skip_line(1, NAN)]
