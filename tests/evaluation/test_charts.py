"""Curves come from metrics.jsonl, also of stopped and resumed runs."""

import json
import re
from pathlib import Path

import pytest

from ernie_vilg.evaluation.charts import Curve, curves, line_chart, read_metrics, smoothed


def write_lines(path: Path, *entries: object) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_repeated_step_counts_once_with_its_last_values(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(
        path, {"step": 1, "loss": 5}, {"step": 2, "loss": 4}, {"step": 1, "loss": 3}, {"done": True}
    )

    assert read_metrics(path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 4}]


def test_lines_of_one_step_are_one_entry(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, {"step": 1, "loss": 5}, {"step": 1, "samples/perplexity": 3.0})

    assert read_metrics(path) == [{"step": 1, "loss": 5, "samples/perplexity": 3.0}]


def test_null_is_no_point() -> None:
    entries = [{"step": 1, "loss": None}, {"step": 2, "loss": 1.0}]

    assert curves(entries, {"loss": "total"}) == [Curve(label="total", steps=(2,), values=(1.0,))]


def test_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5}\n{"step": 2, "lo')

    assert read_metrics(path) == [{"step": 1, "loss": 5}]


def test_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')

    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        read_metrics(path)


@pytest.mark.parametrize("line", ["null", "5", "[1]", '{"step": "2"}', "[" * 100_000])
def test_a_line_that_holds_no_metrics_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')

    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2"):
        read_metrics(path)


def test_foreign_line_ends_are_text(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "caption": "a\u2028b\x85c"}\n', encoding="utf-8")

    assert read_metrics(path) == [{"step": 1, "caption": "a\u2028b\x85c"}]


@pytest.mark.parametrize("value", ["high", [1.0], True, 10**400])
def test_what_is_no_number_is_no_point(value: object) -> None:
    entries = [{"step": 1, "loss": value}, {"step": 2, "loss": 1.0}]

    assert curves(entries, {"loss": "total"}) == [Curve(label="total", steps=(2,), values=(1.0,))]


def test_no_file_is_no_entries(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_metric_that_was_never_logged_has_no_curve() -> None:
    entries = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "psnr": 20.0}]

    assert curves(entries, {"loss": "total", "psnr": "PSNR", "speed": "speed"}) == [
        Curve(label="total", steps=(1, 2), values=(2.0, 1.0)),
        Curve(label="PSNR", steps=(2,), values=(20.0,)),
    ]


def test_chart_is_the_same_text_every_time() -> None:
    line = Curve(label="a", steps=(1, 2), values=(1.0, 2.0))

    first, second = (line_chart([line], title="Loss", y_label="nats") for _ in range(2))

    assert first == second
    assert first.rstrip().endswith("</svg>")


def lowest_point(svg: str) -> float:
    """Return the largest y of the chart's line, in points from the top."""
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke-width: 1\.6', svg)
    return max(float(y) for y in re.findall(r"[ML] \S+ (\S+)", str(path)))


def test_zero_is_a_gap_on_a_logarithmic_axis() -> None:
    with_zero, without = (
        line_chart(
            [Curve(label="a", steps=(1, 2, 3, 4, 5), values=(1.0, 2.0, middle, 2.0, 4.0))],
            title="Loss", y_label="nats", logarithmic=True,
        )
        for middle in (0.0, 2.0)
    )  # fmt: skip

    assert lowest_point(with_zero) == lowest_point(without)


def test_the_moving_mean_keeps_the_ends_and_is_geometric_on_a_logarithmic_axis() -> None:
    values = (8.0, 1.0, 1.0, 1.0, 1.0, 32.0, *[1.0] * 14)
    curve = Curve(label="a", steps=tuple(range(20)), values=values)

    mean, geometric = (
        smoothed(curve, is_logarithmic=is_logarithmic) for is_logarithmic in (False, True)
    )

    assert mean is not None
    assert geometric is not None
    assert mean.values[:6] == pytest.approx((8, 10 / 3, 12 / 5, 36 / 5, 36 / 5, 36 / 5))
    assert geometric.values[:6] == pytest.approx((8, 2, 8 ** (1 / 5), 2, 2, 2))
    assert (mean.values[-1], mean.steps) == (1.0, curve.steps)


def test_few_points_have_no_moving_mean() -> None:
    curve = Curve(label="a", steps=tuple(range(19)), values=(1.0,) * 19)

    assert smoothed(curve, is_logarithmic=True) is None
