"""A rank that works while the others wait is named."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.step_times import OPTIMIZER, StepTimes
from ernie_vilg.resilience.members import Member, gather_members
from ernie_vilg.resilience.stragglers import Stragglers, work_ratios
from ernie_vilg.system.processes import ProcessMark
from tests.distributed import run_distributed

NO_GROUP: Any = None
PAIR = [
    Member(
        rank=rank,
        coordinates=f"data {rank}",
        host="here",
        machine="here",
        process=ProcessMark(process_id=100 + rank, start_ticks=1),
    )
    for rank in range(2)
]


def layout(*, tensor_size: int = 1, pipeline_size: int = 1, data_size: int = 1) -> Groups:
    return Groups(
        rank=0,
        device=torch.device("cpu"),
        tensor_rank=0,
        tensor_size=tensor_size,
        data_rank=0,
        data_size=data_size,
        pipeline_rank=0,
        pipeline_size=pipeline_size,
        tensor_group=NO_GROUP,
        data_group=NO_GROUP,
    )


@pytest.mark.parametrize(
    ("groups", "seconds", "ratios"),
    [
        pytest.param(
            layout(data_size=4), [2.0, 2.0, 6.0, 2.0], [1.0, 1.0, 3.0, 1.0], id="one of four"
        ),
        pytest.param(
            layout(data_size=2), [2.0, 6.0], [1.0, 3.0], id="of two ranks the faster is the measure"
        ),
        pytest.param(
            layout(data_size=2, pipeline_size=2),
            [2.0, 2.0, 6.0, 6.0],
            [1.0, 1.0, 1.0, 1.0],
            id="the second stage has more layers",
        ),
        pytest.param(
            layout(pipeline_size=2), [2.0, 6.0], [1.0, 3.0], id="without peers in the stage, all"
        ),
    ],
)
def test_work_is_compared_within_a_stage(
    groups: Groups, seconds: list[float], ratios: list[float]
) -> None:
    assert work_ratios(seconds, groups) == ratios


def logged_ratios(launch: Launch, slow_rank: int, log: Path) -> list[dict[str, float]]:
    """Take steps of which one rank needs longer; return what each log line says."""
    logging.basicConfig(filename=log, level=logging.WARNING, force=True)
    groups = build_groups(1, 1, start_processes(launch, timeout_seconds=60))
    lines = []
    with Communication(groups) as communication:
        step_times = StepTimes(communication)
        stragglers = Stragglers(WatchConfig(straggler_windows=2), groups, gather_members(groups))
        step = step_times.timed(
            OPTIMIZER, lambda: time.sleep(0.25 if launch.rank == slow_rank else 0.05)
        )
        for number in range(1, 9):
            with step_times.reading():
                pass
            step()
            dist.all_reduce(torch.ones(1))
            if number % 2 == 0:
                step_times.read()
                lines.append(stragglers.read(number, step_times.work_seconds_per_step))
    return lines


@pytest.mark.distributed
def test_a_slow_rank_is_named_once(tmp_path: Path) -> None:
    """It sleeps five times as long; two log lines later the log names it."""
    log = tmp_path / "log"

    per_rank = run_distributed(logged_ratios, 3, 1, log)

    for line in per_rank[0]:
        assert line["slowest_rank"] == 1
        assert line["slowest_rank_ratio"] > 1.5
    assert per_rank[0] == per_rank[1] == per_rank[2]
    warning, *others = log.read_text().splitlines()
    assert not others
    assert "step 4: rank 1 (tensor 0, pipeline 0, data 1 on " in warning


def test_a_single_rank_has_nobody_to_be_compared_with() -> None:
    assert Stragglers(WatchConfig(), layout(), []).read(1, 1.0) == {}


def test_a_rank_that_is_slow_now_and_then_is_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stragglers = Stragglers(WatchConfig(straggler_windows=2), layout(data_size=2), PAIR)
    monkeypatch.setattr(
        "ernie_vilg.resilience.stragglers.gather_everywhere",
        lambda seconds: [seconds, 1.0],
    )

    for step, seconds in enumerate([2.0, 1.0, 2.0, 1.0]):
        stragglers.read(step, seconds)

    assert not caplog.messages


def test_a_rank_is_slow_above_the_factor_and_not_at_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = WatchConfig(straggler_windows=1, straggler_factor=1.5)
    stragglers = Stragglers(config, layout(data_size=2), PAIR)
    monkeypatch.setattr(
        "ernie_vilg.resilience.stragglers.gather_everywhere",
        lambda seconds: [seconds, 2.0],
    )

    stragglers.read(1, 3.0)
    assert not caplog.messages
    stragglers.read(2, 3.25)
    assert "rank 0" in caplog.text
