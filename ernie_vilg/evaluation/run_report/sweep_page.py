"""The page of a sweep: charts over its jobs, and their table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ernie_vilg.evaluation.charts import MOST_LINES, read_metrics
from ernie_vilg.evaluation.page import render
from ernie_vilg.evaluation.run_report.sweep_charts import (
    SweptJob,
    last_losses_in_words,
    sweep_charts,
)
from ernie_vilg.runs.run_folder import RunFolder


def sweep_html(
    folder: Path, values: Mapping[str, Mapping[str, str]], rows: Sequence[Sequence[str]]
) -> str:
    """Return the page.

    Args:
        folder: folder of the sweep.
        values: values of each job by key, of the settings that have several, by its run folder's
            name.
        rows: the sweep's table, its heading first.

    Raises:
        InputError: a job's metrics are damaged.
    """
    metrics = [read_metrics(RunFolder(folder / name).metrics) for name in values]
    jobs = [
        SweptJob(values=each, losses=losses)
        for each, losses in zip(values.values(), last_losses_in_words(metrics), strict=True)
    ]
    return render(
        "ernie_vilg.evaluation.run_report",
        "sweep.html",
        title=f"Sweep {folder.name}: {len(jobs)} jobs over {', '.join(jobs[0].values)}",
        charts=sweep_charts(jobs),
        rows=rows,
        command=f"python launch/report.py 'runs=[{folder}/*]' output={folder}/runs.html",
        is_comparable=len(jobs) <= MOST_LINES,
    )
