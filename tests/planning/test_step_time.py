"""Predicted steps behave as the hardware does, and reproduce what peers published."""

from dataclasses import replace

import pytest

from benchmarks.peers.runs import peer_runs
from benchmarks.peers.shapes import Shape, gpt
from benchmarks.plan_peers import GOAL, compare, read_gpu
from ernie_vilg.planning.communication import replica_seconds
from ernie_vilg.planning.step_time import step_time
from ernie_vilg.planning.work import RECOMPUTATION, Spread

_WORK = gpt(Shape(hidden=4096, layers=8, heads=32, seq=2048, vocab=51200), flash=True)
_SPREAD = Spread(micro_batch=2, num_micro_batches=4)


def test_at_least_six_published_steps_are_reproduced() -> None:
    rows = [row for row in compare(peer_runs()) if not row.is_calibration]

    assert sum(abs(row.error) <= GOAL for row in rows) >= 6


def test_only_two_runs_are_calibrated_on() -> None:
    assert sum(run.is_calibration for run in peer_runs()) == 2


def test_ring_gather_moves_all_but_its_own_share() -> None:
    gpu = replace(read_gpu("h100-80gb"), node_bandwidth=1e9)

    seconds = replica_seconds(4e9, replace(_SPREAD, data=4), gpu)

    assert seconds == pytest.approx(3e9 / 0.8e9, rel=1e-3)  # 0.8 of the wire is reached


def test_bubble_of_four_stages_is_three_micro_batches() -> None:
    spread = replace(_SPREAD, pipeline=4)

    step = step_time(_WORK, spread, read_gpu("h100-80gb"))

    # Replicas and optimizer aside, 4 passes and a bubble of 3.
    assert step.bubble / (step.total - step.replicas - step.optimizer) == pytest.approx(3 / 7)


def test_full_checkpointing_computes_a_forward_pass_again() -> None:
    gpu = read_gpu("h100-80gb")
    work = replace(_WORK, head_flops=0.0)

    step = step_time(work, replace(_SPREAD, recomputation=RECOMPUTATION["full"]), gpu)

    computed = step.matrix + step.attention + step.elementwise
    assert step.recomputation == pytest.approx(computed / 3)
