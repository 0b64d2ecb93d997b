"""Charts of a run's log, or of several logs with one line per run.

A run keeps its colour and dashes in every chart. Losses, gradient norms and other figures that span
decades have a logarithmic axis. The page names the runs once, above the charts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ernie_vilg.evaluation.charts import (
    Curve,
    Marks,
    ascii_label,
    ascii_text,
    curves,
    is_number,
    line_chart,
    smoothed,
)
from ernie_vilg.evaluation.run_report.runs import LoggedRun
from ernie_vilg.evaluation.validation_charts import (
    DIRECTIONS,
    held_out_names,
    validation_charts,
)

Chart = tuple[str, str]
"""An SVG document and its description."""
Section = tuple[str, list[Chart]]
"""A heading, and the charts under it."""
_LOSS_UNIT = "nats per token"
_SKIPPED, _ROLLED_BACK = 2, 4  # indices of colours


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of log lines, and its chart."""

    name: str
    """Name in metrics.jsonl."""
    title: str
    """Title of the chart, ASCII."""
    unit: str
    """Label of the vertical axis, ASCII."""
    is_logarithmic: bool = True
    """Whether the vertical axis is logarithmic."""
    is_smoothed: bool = True
    """Whether the moving mean stands before the raw values."""
    has_marks: bool = False
    """Whether skipped updates and rollbacks stand in the chart."""


LOSSES = (
    Figure(name="loss", title="Loss, weighted sum", unit="weighted sum", has_marks=True),
    Figure(name="loss_text_to_image", title="Loss, text to image", unit=_LOSS_UNIT, has_marks=True),
    Figure(name="loss_image_to_text", title="Loss, image to text", unit=_LOSS_UNIT, has_marks=True),
    Figure(name="loss_reconstruction", title="Loss, reconstruction", unit="loss of pixels"),
)
"""Losses of the transformer's log lines."""
TOKENIZER_LOSSES = (
    Figure(name="loss", title="Loss", unit="weighted sum", has_marks=True),
    Figure(name="reconstruction_loss", title="Loss, reconstruction", unit="loss of pixels"),
    Figure(name="psnr", title="PSNR", unit="dB", is_logarithmic=False),
    Figure(name="codebook_usage", title="Codes in use", unit="fraction", is_logarithmic=False),
    Figure(name="perplexity", title="Perplexity of the codes", unit="codes", is_logarithmic=False),
)
"""Losses and quality of the image tokenizer's log lines."""
PROGRESS = (
    Figure(name="gradient_norm", title="Gradient norm", unit="norm", has_marks=True),
    Figure(
        name="learning_rate",
        title="Learning rate",
        unit="rate",
        is_logarithmic=False,
        is_smoothed=False,
    ),
    Figure(
        name="pairs_per_second", title="Throughput", unit="pairs per second", is_logarithmic=False
    ),
    Figure(
        name="images_per_second",
        title="Throughput",
        unit="pictures per second",
        is_logarithmic=False,
    ),
)
"""Figures that every trainer logs."""

_BY_PLACE = {
    "loss_by_image_row": ("Loss by row of the picture, text to image", "row, from the top"),
    "loss_by_text_position": ("Loss by position of the text, image to text", "text position"),
}


def run_charts(runs: Sequence[LoggedRun], losses: Sequence[Figure]) -> list[Section]:
    """Return the charts of runs by the heading they stand under.

    Args:
        runs: logs of one program's runs.
        losses: the losses of its log lines.
    """
    sections = [
        ("Losses", log_charts(runs, losses)),
        ("Held-out pairs", held_out_charts(runs)),
        ("Losses by place", place_charts(runs)),
        ("Progress", log_charts(runs, PROGRESS)),
    ]
    return [(heading, charts) for heading, charts in sections if charts]


def log_charts(runs: Sequence[LoggedRun], figures: Sequence[Figure]) -> list[Chart]:
    """Draw each figure that some run logs: raw values, and before them their moving mean.

    Args:
        runs: at most `charts.MOST_LINES`.
        figures: what to draw; a figure that no run has is passed over.
    """
    charts = []
    for figure in figures:
        lines = list(_lines(runs, figure))
        if not lines:
            continue
        svg = line_chart(
            lines,
            title=figure.title,
            y_label=figure.unit,
            logarithmic=figure.is_logarithmic,
            marks=_marks(runs) if figure.has_marks else (),
            names_lines=False,
        )
        charts.append((svg, _describe(figure.title, runs, lines)))
    return charts


def held_out_charts(runs: Sequence[LoggedRun]) -> list[Chart]:
    """Draw the held-out losses: of one run beside those of training, of several by set."""
    if len(runs) == 1:
        return validation_charts(runs[0].entries)
    names = sorted({name for run in runs for name in held_out_names(run.entries)})
    return log_charts(
        runs,
        [
            Figure(
                name=f"validation/{name}/{key}",
                title=f"Held out ({ascii_text(name)}), {words}",
                unit=_LOSS_UNIT,
                is_smoothed=False,
            )
            for name in names
            for key, words in DIRECTIONS.items()
        ],
    )


def place_charts(runs: Sequence[LoggedRun]) -> list[Chart]:
    """Draw the losses by row of the picture and by position of the text.

    One run has the first, the middle and the last log line, and the last validation; of several
    runs, each has its last log line.
    """
    charts = []
    for key, (title, x_label) in _BY_PLACE.items():
        if len(runs) == 1:
            lines, what = _places_of_run(runs[0], key), "at some steps of the training"
        else:
            lines, what = _last_places(runs, key), "at the last log line of each run"
        if lines:
            svg = line_chart(
                lines,
                title=title,
                y_label=_LOSS_UNIT,
                x_label=x_label,
                logarithmic=True,
                names_lines=len(runs) == 1,
            )
            charts.append((svg, f"{title}, {what}"))
    return charts


def _lines(runs: Sequence[LoggedRun], figure: Figure) -> Iterator[Curve]:
    for index, run in enumerate(runs):
        for curve in curves(run.entries, {figure.name: run.label}):
            raw = replace(ascii_label(curve), index=index)
            is_logarithmic = figure.is_logarithmic
            mean = smoothed(raw, is_logarithmic=is_logarithmic) if figure.is_smoothed else None
            if mean is not None:
                yield replace(raw, is_faint=True)
            yield mean or raw


def _marks(runs: Sequence[LoggedRun]) -> list[Marks]:
    """Return the marks of all runs: orange crosses for skipped updates, triangles for rollbacks."""
    skipped = tuple(step for run in runs for step in run.skipped)
    back = tuple(step for run in runs for step in run.rolled_back)
    marks = [
        Marks(label="update skipped", steps=skipped, marker="x", index=_SKIPPED),
        Marks(label="back to a checkpoint", steps=back, marker="<", index=_ROLLED_BACK),
    ]
    return [mark for mark in marks if mark.steps]


def _describe(title: str, runs: Sequence[LoggedRun], lines: Sequence[Curve]) -> str:
    """Return the text for those who do not see the chart: title, range and last value of runs."""
    ends = [
        f"{runs[line.index or 0].label} ends at {line.values[-1]:.4g} (step {line.steps[-1]:,})"
        for line in lines
        if not line.is_faint
    ]
    return f"{title} over steps: {'; '.join(ends)}"


def _places_of_run(run: LoggedRun, key: str) -> list[Curve]:
    logged = [entry for entry in run.entries if _is_list(entry, key)]
    chosen = {
        entry["step"]: entry for entry in (logged[:1] + logged[_middle(logged)] + logged[-1:])
    }
    lines = [_over_places(entry, key, f"step {step:,}") for step, entry in chosen.items()]
    for name in held_out_names(run.entries)[:2]:
        held_out = f"validation/{name}/{key}"
        measured = [entry for entry in run.entries if _is_list(entry, held_out)]
        for entry in measured[-1:]:
            label = f"{ascii_text(name)}, step {entry['step']:,}"
            lines.append(_over_places(entry, held_out, label))
    return [replace(line, index=index) for index, line in enumerate(lines)]


def _middle(logged: Sequence[Mapping[str, Any]]) -> slice:
    """Return the place of the line nearest to the middle of all steps."""
    if not logged:
        return slice(0, 0)
    middle = (logged[0]["step"] + logged[-1]["step"]) / 2
    index = min(range(len(logged)), key=lambda each: abs(logged[each]["step"] - middle))
    return slice(index, index + 1)


def _last_places(runs: Sequence[LoggedRun], key: str) -> list[Curve]:
    lines = []
    for index, run in enumerate(runs):
        for entry in [entry for entry in run.entries if _is_list(entry, key)][-1:]:
            lines.append(replace(_over_places(entry, key, ascii_text(run.label)), index=index))
    return lines


def _over_places(entry: Mapping[str, Any], key: str, label: str) -> Curve:
    """Return a list as a curve over rows or slots, which count from 1; null is no point."""
    points = [(place, value) for place, value in enumerate(entry[key], 1) if is_number(value)]
    places, values = zip(*points, strict=True)
    return Curve(label=label, steps=places, values=values)


def _is_list(entry: Mapping[str, Any], key: str) -> bool:
    value = entry.get(key)
    return isinstance(value, list) and any(is_number(part) for part in value)
