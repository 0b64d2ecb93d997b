"""The page of one run, or of several side by side: cards, tables, charts, pictures."""

from collections.abc import Sequence

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.evaluation.charts import COLOURS, DASHES, curves
from ernie_vilg.evaluation.page import render
from ernie_vilg.evaluation.run_report.facts import (
    differing_settings,
    fact_rows,
    loss_rows,
)
from ernie_vilg.evaluation.run_report.filmstrip import Strip, filmstrip
from ernie_vilg.evaluation.run_report.run_charts import LOSSES, TOKENIZER_LOSSES, run_charts
from ernie_vilg.evaluation.run_report.run_folders import run_folders
from ernie_vilg.evaluation.run_report.runs import ReportedRun, read_runs
from ernie_vilg.evaluation.validation_charts import gaps
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.system.progress import duration

_CARDS = {
    "loss_text_to_image": ("Text to image", "nats per image code, last log line"),
    "loss_image_to_text": ("Image to text", "nats per text piece, last log line"),
    "psnr": ("PSNR", "dB of reconstructions, last log line"),
    "codebook_usage": ("Codes in use", "fraction of the codebook, last log line"),
}


def runs_html(places: Sequence[str], *, title: str | None, sample_steps: int) -> str:
    """Return the whole page.

    Args:
        places: run folders and patterns of them.
        title: heading; None: the names of the runs.
        sample_steps: largest number of steps whose pictures are shown of each run.

    Raises:
        InputError: a place is no run folder, or its records cannot be shown.
    """
    runs = read_runs(run_folders(places))
    names = [run.log.label for run in runs]
    heading = title or (names[0] if len(runs) == 1 else f"{len(runs)} runs: {', '.join(names)}")
    is_transformer = isinstance(runs[0].config, PretrainConfig)
    strips = [(run.log.label, _strip(run, sample_steps)) for run in runs]
    return render(
        "ernie_vilg.evaluation.run_report",
        "runs.html",
        title=heading,
        names=names,
        legend=legend(names) if len(runs) > 1 else [],
        cards=_cards(runs[0]) if len(runs) == 1 else [],
        facts=fact_rows(runs),
        settings=differing_settings(runs) if len(runs) > 1 else None,
        losses=loss_rows(runs),
        charts=run_charts(
            [run.log for run in runs], LOSSES if is_transformer else TOKENIZER_LOSSES
        ),
        strips=[(name, strip) for name, strip in strips if strip is not None],
    )


def legend(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the name, the colour and the dashes of each run's lines."""
    looks = [(colour, dashes) for dashes in DASHES for colour in COLOURS]
    return [(name, *look) for name, look in zip(names, looks, strict=False)]


def _strip(run: ReportedRun, sample_steps: int) -> Strip | None:
    files = RunFolder(run.folder)
    return filmstrip(files.all_samples() or files.all_reconstructions(), sample_steps)


def _cards(run: ReportedRun) -> list[tuple[str, str, str]]:
    """Return name, figure and meaning of what a reader looks for first."""
    entries = run.log.entries
    cards = [
        (name, f"{curve.values[-1]:.3f}", what)
        for key, (name, what) in _CARDS.items()
        for curve in curves(entries, {key: name})
    ]
    cards += [gap.card() for gap in gaps(entries)]
    step, steps = entries[-1]["step"], run.config.training.steps
    seconds = sum(entry.get("line_seconds") or 0.0 for entry in run.log.lines())
    cards.append(("Steps", f"{step:,}", f"of {steps:,}, in {duration(seconds)}"))
    return cards
