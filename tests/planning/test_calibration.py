"""Past runs correct the rates of computing, and leave those of wires unchanged."""

from dataclasses import replace

import pytest

from benchmarks.peers.shapes import Shape, gpt
from benchmarks.support.models import read_gpu
from ernie_vilg.planning.calibration import Correction, PastRun, errors, learn
from ernie_vilg.planning.memory import MemoryEstimate
from ernie_vilg.planning.step_time import Efficiencies, step_time
from ernie_vilg.planning.workload import Spread

_RUN = PastRun(
    workload=gpt(Shape(hidden=4096, layers=8, heads=32, seq=2048, vocab=51200), flash=True),
    spread=Spread(micro_batch=2, num_micro_batches=4, tensor=8),
    gpu=read_gpu("h100-80gb"),
    measured_seconds=1.0,
    predicted_bytes=10.0,
    measured_bytes=12.0,
)


def test_a_slow_gpu_slows_computing_and_not_the_wires() -> None:
    slow = Correction(rates=0.5)
    run = replace(_RUN, measured_seconds=_RUN.seconds(slow.efficiencies))

    learned = learn([run])

    assert learned.rates == pytest.approx(0.5)
    before, after = (
        step_time(run.workload, run.spread, run.gpu, rates)
        for rates in (Efficiencies(), learned.efficiencies)
    )
    assert after.matrix == pytest.approx(2 * before.matrix)
    assert after.elementwise == pytest.approx(2 * before.elementwise)
    assert after.tensor == before.tensor
    # Half the rate is not twice the time: collectives among tensor ranks take as long as before.
    assert run.measured_seconds < 1.9 * run.seconds(Efficiencies())


def test_the_median_of_three_runs_counts_and_the_remaining_error_is_returned() -> None:
    runs = [
        replace(_RUN, measured_seconds=_RUN.seconds(Correction(rates=rates).efficiencies))
        for rates in (0.5, 0.6, 1.0)
    ]

    learned = learn(runs)
    before, after = errors(runs, Correction()), errors(runs, learned)

    assert learned.rates == pytest.approx(0.6)
    assert learned.memory == pytest.approx(1.2)
    assert after[0] < before[0]
    off = [run.seconds(learned.efficiencies) / run.measured_seconds - 1 for run in runs]
    assert after[0] == pytest.approx(sum(map(abs, off)) / 3)
    assert (before[1], after[1]) == (pytest.approx(1 / 6), pytest.approx(0))


def test_without_runs_nothing_is_corrected() -> None:
    assert learn([]) == Correction()


def test_a_correction_of_memory_leaves_the_host_as_it_is() -> None:
    estimate = MemoryEstimate(
        weights=100,
        gradients=200,
        optimizer=300,
        activations=400,
        workspace=500,
        logits=600,
        fragmentation=700,
        host=800,
    )

    corrected = Correction(memory=1.5).memory_of(estimate)

    assert corrected.weights == 150
    assert corrected.total == 1.5 * 2800
    assert corrected.host == 800
