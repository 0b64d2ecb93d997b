"""Held-out losses stand beside those of training, and so does the distance between them."""

import pytest

from ernie_vilg.evaluation.validation_charts import gaps, held_out_names, validation_charts

ENTRIES = [
    {"step": 10, "loss_text_to_image": 3.0, "loss_image_to_text": 2.0},
    {
        "step": 15,
        "validation/new/loss": 5.5,
        "validation/new/loss_text_to_image": 3.25,
        "validation/new/loss_image_to_text": 2.25,
        "validation/new/average/loss": 6.0,
        "validation/seconds": 1.0,
    },
    {"step": 20, "loss_text_to_image": 1.0, "loss_image_to_text": 0.5},
]


def test_only_sets_have_names() -> None:
    assert held_out_names(ENTRIES) == ["new"]
    assert held_out_names(ENTRIES[:1]) == []


def test_the_gap_is_taken_to_the_training_loss_before_the_validation() -> None:
    found = gaps(ENTRIES)

    assert [(gap.name, gap.direction, gap.nats) for gap in found] == [
        ("new", "text to image", pytest.approx(0.25)),
        ("new", "image to text", pytest.approx(0.25)),
    ]


def test_each_direction_has_a_chart_of_both_losses() -> None:
    charts = validation_charts(ENTRIES)

    assert len(charts) == 2
    for svg, description in charts:
        assert svg.count("<path") > 0
        assert "training" in svg
        assert "held-out pairs" in description
    assert validation_charts(ENTRIES[:1]) == []
