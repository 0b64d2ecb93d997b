"""The seconds of phases, and what a log line says of waiting."""

import time

import pytest

from ernie_vilg.runs.meter import waits
from ernie_vilg.runs.phases import Phase, Phases

PARTS = {
    "data_seconds_per_step": 0.1,
    "forward_seconds_per_step": 0.3,
    "backward_seconds_per_step": 0.3,
    "communication_seconds_per_step": 0.2,
    "other_seconds_per_step": 0.1,
}


def test_pauses_are_counted_and_the_start_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    phases = Phases()
    plan = [(Phase.START, 50.0), (Phase.DATA, 1.0), (Phase.STEP, 4.0), (Phase.SAVE, 2.0)]
    for phase, seconds in [*plan, (Phase.DATA, 1.0), (Phase.STEP, 4.0)]:
        phases.enter(phase, 1)
        clock[0] += seconds

    assert phases.read() == {"line_seconds": 12.0, "save_seconds": 2.0}
    assert phases.now.since == 158.0  # the watchdog's clock goes on
    clock[0] += 3.0
    assert phases.read() == {"line_seconds": 3.0}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        pytest.param({}, "", id="nothing was measured"),
        pytest.param({"line_seconds": 10.0}, "", id="no part was measured"),
        pytest.param({"line_seconds": 10.0, **PARTS}, "waits: data 10%, ranks 20%  ", id="steps"),
        pytest.param(
            {"line_seconds": 10.0, "save_seconds": 5.0, **PARTS},
            "waits: data 5%, ranks 10%, saving 50%  ",
            id="half of the time is a save",
        ),
        pytest.param(
            {"line_seconds": 10.0, "draw_seconds": 0.09, "data_seconds_per_step": 0.0},
            "",
            id="below one percent",
        ),
    ],
)
def test_a_log_line_says_what_waited(metrics: dict[str, float], words: str) -> None:
    assert waits(metrics) == words
