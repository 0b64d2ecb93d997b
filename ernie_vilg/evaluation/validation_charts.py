"""Held-out losses beside those of training, from a run's metrics."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ernie_vilg.evaluation.charts import COLOURS, ascii_label, curves, line_chart

DIRECTIONS = {"loss_text_to_image": "text to image", "loss_image_to_text": "image to text"}
"""Words of the losses by their names in the metrics."""
_OF_A_SET = re.compile(r"validation/([^/]+)/loss")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Distance between a held-out set's loss and the training loss at the last validation."""

    name: str
    """Name of the set."""
    direction: str
    """Direction in words."""
    held_out: float
    """Loss of the held-out pairs, nats per token."""
    training: float
    """Mean training loss of the steps before, since the log line before, nats per token."""

    @property
    def nats(self) -> float:
        """Generalisation gap: how much worse the held-out pairs are, nats per token."""
        return self.held_out - self.training

    def card(self) -> tuple[str, str, str]:
        """Return name, figure and meaning, for the cards at the top of a page."""
        meaning = (
            f"nats per token that held-out pairs ({self.name}) cost more than training pairs, "
            f"{self.direction}: {self.held_out:.3f} and {self.training:.3f}"
        )
        return "Generalisation gap", f"{self.nats:.3f}", meaning


def held_out_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the held-out sets in entries of `read_metrics`, in order."""
    matches = [_OF_A_SET.fullmatch(key) for entry in entries for key in entry]
    return sorted({match[1] for match in matches if match})


def validation_charts(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Draw each direction's training loss and held-out losses over steps.

    Args:
        entries: entries of `read_metrics`.

    Returns:
        an SVG document and its description per direction; none without a validation.
    """
    names = held_out_names(entries)[: len(COLOURS) - 1]
    charts = []
    for key, words in DIRECTIONS.items() if names else ():
        labels = {key: "training"} | {f"validation/{name}/{key}": name for name in names}
        title = f"Held out, {words}"
        lines = [ascii_label(line) for line in curves(entries, labels)]
        chart = line_chart(lines, title=title, y_label="nats per token", logarithmic=True)
        charts.append((chart, f"Loss over steps of training and of held-out pairs, {words}"))
    return charts


def gaps(entries: Sequence[Mapping[str, Any]]) -> list[Gap]:
    """Return the generalisation gaps of all sets at their last validation.

    Args:
        entries: entries of `read_metrics`.
    """
    found = []
    for name in held_out_names(entries):
        for key, words in DIRECTIONS.items():
            (held_out,) = curves(entries, {f"validation/{name}/{key}": name})
            for training in curves(entries, {key: "training"}):
                before = [
                    value
                    for step, value in zip(training.steps, training.values, strict=True)
                    if step <= held_out.steps[-1]
                ]
                if before:
                    found.append(
                        Gap(
                            name=name,
                            direction=words,
                            held_out=held_out.values[-1],
                            training=before[-1],
                        )
                    )
    return found
