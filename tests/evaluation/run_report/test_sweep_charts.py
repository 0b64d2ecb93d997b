"""The losses of a sweep's jobs stand against each swept setting."""

import pytest

from ernie_vilg.evaluation.run_report.sweep_charts import (
    SweptJob,
    is_logarithmic,
    last_losses_in_words,
    sweep_charts,
)
from tests.evaluation.run_report.recorded_runs import LINES, log_line

LOSS = "training, weighted sum"


def job(loss: float | None, **values: str) -> SweptJob:
    return SweptJob(values=values, losses={} if loss is None else {LOSS: loss})


def test_held_out_losses_are_taken_where_a_job_has_any() -> None:
    validated, killed = last_losses_in_words([LINES, [log_line(10, 2.0)]])
    (training,) = last_losses_in_words([[log_line(10, 2.0), log_line(20, 1.0)]])

    assert validated == {
        "held out (held_out), weighted sum": 2.25,
        "held out (held_out), text to image": 0.75,
        "held out (held_out), image to text": 0.375,
    }
    assert killed == {}
    assert training == {
        "training, weighted sum": 3.0,
        "training, text to image": 1.0,
        "training, image to text": 0.5,
    }


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1e-3, 3e-4, 1e-4], True),
        ([1, 2, 4, 8], True),
        ([1, 2, 3, 4], False),
        ([0, 0.1, 0.2], False),
        ([1, 2], False),
        ([1e-3, 3e-4], True),
        ([5], False),
    ],
)
def test_an_axis_is_logarithmic_where_the_values_are_spaced_so(
    numbers: list[float], expected: bool
) -> None:
    assert is_logarithmic(numbers) is expected


def test_numbers_are_points_and_the_best_is_said() -> None:
    jobs = [job(2.0, rate="1e-3"), job(1.5, rate="3e-4"), job(None, rate="1e-4")]

    ((svg, description),) = sweep_charts(jobs)

    assert description == "rate: training, weighted sum: the lowest of 2 is 1.5 at 3e-4"
    assert "<!-- 3e-4 -->" in svg  # ticks are the values as they were typed
    assert svg.count("<use") >= 2


def test_other_values_are_bars_in_their_order() -> None:
    jobs = [job(2.0, attention="sparse"), job(1.0, attention="full")]

    ((svg, description),) = sweep_charts(jobs)

    assert svg.index("<!-- sparse -->") < svg.index("<!-- full -->")
    assert svg.count("fill: #0072b2") == 2
    assert description.endswith("the lowest of 2 is 1 at full")


def test_two_settings_have_a_chart_each_with_the_other_as_lines() -> None:
    jobs = [
        job(float(index), **{"optimizer.rate": rate, "model.attention": attention})
        for index, (rate, attention) in enumerate(
            [("1", "full"), ("1", "sparse"), ("2", "full"), ("2", "sparse")]
        )
    ]

    rates, attentions = sweep_charts(jobs)

    assert "<!-- attention=full -->" in rates[0]
    assert "<!-- attention=sparse -->" in rates[0]
    assert "<!-- rate=1 -->" in attentions[0]
    assert rates[1].endswith("the lowest of 4 is 0 at 1 with attention=full")


def test_more_combinations_than_a_chart_tells_apart_are_dots_of_one_colour() -> None:
    jobs = [
        job(1.0 + seed + rate, rate=str(rate), seed=str(seed))
        for rate in (1, 2)
        for seed in range(13)
    ]

    (rates, _), _ = sweep_charts(jobs)

    assert "<!-- seed=" not in rates
    assert "#0072b2" not in rates


def test_a_sweep_whose_jobs_all_failed_has_no_chart() -> None:
    assert sweep_charts([job(None, rate="1"), job(None, rate="2")]) == []
