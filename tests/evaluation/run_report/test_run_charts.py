"""Every run has one line per chart; rows and positions have lines at three moments."""

import re

import pytest

from ernie_vilg.evaluation.run_report.run_charts import (
    LOSSES,
    PROGRESS,
    held_out_charts,
    log_charts,
    place_charts,
)
from ernie_vilg.evaluation.run_report.runs import LoggedRun
from tests.evaluation.run_report.recorded_runs import LINES, log_line, validation_line

ONE = LoggedRun(label="one", entries=LINES[1:])
OTHER = LoggedRun(label="other", entries=[log_line(step, 9.0) for step in (5, 10)])


def titles(charts: list[tuple[str, str]]) -> list[str]:
    return [description.partition(" over steps")[0] for _, description in charts]


def curves_in(svg: str) -> int:
    """Return the number of lines with a stroke of a curve's width."""
    return len(re.findall(r"stroke-width: (?:1\.6|0\.8); stroke-linecap: square", svg))


def test_losses_of_both_directions_are_drawn_and_what_is_not_logged_is_not() -> None:
    assert titles(log_charts([ONE], LOSSES)) == [
        "Loss, weighted sum",
        "Loss, text to image",
        "Loss, image to text",
    ]
    assert titles(log_charts([ONE], PROGRESS)) == ["Gradient norm", "Learning rate", "Throughput"]


def test_each_run_has_a_colour_of_its_own_in_each_chart() -> None:
    for svg, description in log_charts([ONE, OTHER], LOSSES):
        assert "stroke: #1f2937" in svg
        assert "stroke: #0072b2" in svg
        assert "one ends at" in description
        assert "other ends at" in description


def test_a_run_without_the_figure_leaves_its_colour_to_no_other() -> None:
    silent = LoggedRun(label="silent", entries=[{"step": 1, "other": 1.0}])

    (svg, _), *_ = log_charts([silent, ONE], LOSSES)

    assert "stroke: #0072b2" in svg
    assert "stroke: #1f2937" not in svg


def test_many_points_have_their_moving_mean_before_them() -> None:
    many = LoggedRun(label="many", entries=[log_line(step, 5 / step) for step in range(1, 41)])

    few, smoothed = (log_charts([run], LOSSES[:1])[0][0] for run in (ONE, many))

    assert few.count("stroke-opacity: 0.35") == 0
    assert smoothed.count("stroke-opacity: 0.35") == 1


def test_marks_stand_on_the_losses_alone() -> None:
    skipped = LoggedRun(label="one", entries=ONE.entries, skipped=(20, 44), rolled_back=(44,))

    (loss, _), *_ = log_charts([skipped], LOSSES)
    _, (rate, _), _ = log_charts([skipped], PROGRESS)

    assert "update skipped" in loss
    assert "back to a checkpoint" in loss
    assert "update skipped" not in rate


def test_rows_and_positions_have_the_first_the_middle_and_the_last_line() -> None:
    (rows, _), (positions, _) = place_charts([ONE])

    for svg in (rows, positions):
        assert [step for step in range(10, 101, 10) if f"<!-- step {step} -->" in svg] == [
            10,
            50,
            100,
        ]


def test_rows_of_held_out_pairs_stand_beside_them() -> None:
    measured = {**validation_line(100, 1.0), "validation/held_out/loss_by_image_row": [1.0, 2.0]}

    (rows, _), (positions, _) = place_charts([LoggedRun(label="", entries=[*LINES, measured])])

    assert "<!-- held_out, step 100 -->" in rows
    assert "held_out" not in positions


def test_rows_of_several_runs_are_those_of_their_last_lines() -> None:
    (svg, description), _ = place_charts([ONE, OTHER])

    assert "stroke: #1f2937" in svg
    assert "stroke: #0072b2" in svg
    assert "at the last log line of each run" in description


def test_held_out_losses_stand_by_set_and_direction() -> None:
    other = LoggedRun(label="other", entries=[*OTHER.entries, validation_line(10, 2.0)])

    assert titles(held_out_charts([ONE, other])) == [
        "Held out (held_out), text to image",
        "Held out (held_out), image to text",
    ]
    assert held_out_charts([OTHER]) == []


@pytest.mark.filterwarnings("error")
def test_losses_of_zero_and_names_in_chinese_are_drawn() -> None:
    zero = LoggedRun(label="运行", entries=[log_line(1, 0.0), log_line(2, 0.0)])

    assert len(log_charts([zero], LOSSES)) == 3
    assert len(place_charts([zero])) == 2
