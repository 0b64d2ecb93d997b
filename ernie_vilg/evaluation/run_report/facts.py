"""The tables of a page of runs: facts of each, settings that differ, losses.

A table's first column has the names, every further column is a run.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.evaluation.charts import curves
from ernie_vilg.evaluation.run_report.runs import ReportedRun
from ernie_vilg.evaluation.validation_charts import gaps, held_out_names
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.planning.history import read_record
from ernie_vilg.system.progress import duration

Row = tuple[str, list[str]]
"""The name of a row and its cell of every run."""
NOTHING = "-"
"""Cell of a run that has not recorded the fact."""

_HASH_DIGITS = 8
_MOST_CHARACTERS = 160
_LOSSES = {
    "loss": "weighted sum",
    "loss_text_to_image": "text to image",
    "loss_image_to_text": "image to text",
    "loss_reconstruction": "reconstruction",
    "reconstruction_loss": "reconstruction",
}
_HIGHEST_IS_BEST = {"psnr": "PSNR, dB"}


def fact_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    """Return the facts that some run has recorded."""
    facts: dict[str, Callable[[ReportedRun], str]] = {
        "Run folder": lambda run: str(run.folder),
        "Experiment": lambda run: run.config.tracking.experiment or "",
        "Model": _model,
        "Parameters": _parameters,
        "Layout": _layout,
        "Devices": _devices,
        "Precision": _precision,
        "Global batch": _global_batch,
        "Steps": lambda run: f"{run.log.entries[-1]['step']:,} of {run.config.training.steps:,}",
        "Seen": _seen,
        "Data, SHA-256": _data,
        "Text tokenizer, SHA-256": lambda run: _hash(_lineage(run).get("text_tokenizer")),
        "Image tokenizer, SHA-256": lambda run: _hash(_lineage(run).get("image_tokenizer")),
        "First weights": _start,
        "Trained": _dates,
        "Time": _time,
        "Speed, median": _speed,
        "Updates skipped": _skips,
        "Versions": _versions,
    }
    rows = [(name, [fact(run) or NOTHING for run in runs]) for name, fact in facts.items()]
    return [(name, cells) for name, cells in rows if set(cells) != {NOTHING}]


def differing_settings(runs: Sequence[ReportedRun]) -> list[Row]:
    """Return the settings, as JSON, in which runs differ; those of the run's name are left out."""
    settings = [run.settings for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = [(name, [_setting(each, name) for each in settings]) for name in names]
    return [(name, cells) for name, cells in rows if len(set(cells)) > 1]


def loss_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    """Return the last and the best value, with its step, of each loss, and generalisation gaps."""
    names = dict(_LOSSES)
    sets = sorted({name for run in runs for name in held_out_names(run.log.entries)})
    for name in sets:
        words = {key: f"held out ({name}), {_LOSSES[key]}" for key in list(_LOSSES)[:4]}
        names |= {f"validation/{name}/{key}": each for key, each in words.items()}
    rows = [
        (words, [_last_and_best(run, key) or NOTHING for run in runs])
        for key, words in (names | _HIGHEST_IS_BEST).items()
    ]
    rows = [(name, cells) for name, cells in rows if set(cells) != {NOTHING}]
    return rows + _gap_rows(runs)


def _global_batch(run: ReportedRun) -> str:
    sizes = run.config.batch_sizes
    stages = [f"{stage.global_batch_size:,}" for stage in sizes.warmup]
    return f"{', then '.join([*stages, f'{sizes.full:,}'])} {_unit(run)}"


def _gap_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    by_run = [
        {f"gap ({gap.name}), {gap.direction}": f"{gap.nats:+.4f}" for gap in gaps(run.log.entries)}
        for run in runs
    ]
    names = dict.fromkeys(name for each in by_run for name in each)
    return [(name, [each.get(name, NOTHING) for each in by_run]) for name in names]


def _last_and_best(run: ReportedRun, key: str) -> str:
    choose, best = (max, "highest") if key in _HIGHEST_IS_BEST else (min, "lowest")
    for curve in curves(run.log.entries, {key: key}):
        value, step = choose(zip(curve.values, curve.steps, strict=True), key=lambda each: each[0])
        last = f"{curve.values[-1]:.4f}"
        if value == curve.values[-1]:
            return f"{last}, the {best}"
        return f"{last} ({best}: {value:.4f} at step {step:,})"
    return ""


def _setting(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return NOTHING
    text = json.dumps(settings[name], ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."


def _model(run: ReportedRun) -> str:
    if isinstance(run.config, PretrainConfig):
        model = run.config.model
        return f"{model.num_layers} layers of {model.hidden_size}, {model.num_heads} heads"
    tokenizer = run.config.image_tokenizer
    return (
        f"image tokenizer, {tokenizer.quantizer}: {tokenizer.image_size} px, "
        f"{tokenizer.codebook_size:,} codes"
    )


def _parameters(run: ReportedRun) -> str:
    if not isinstance(run.config, PretrainConfig):
        return ""
    return f"{num_parameters(run.config.model) / 1e6:,.1f} M"


def _layout(run: ReportedRun) -> str:
    """Return the layout; the number of replicas is known from the first checkpoint on."""
    if not isinstance(run.config, PretrainConfig):
        return ""
    layout, saved = run.config.parallelism, run.manifest.get("layout", {})
    if "data_parallel_size" not in saved:
        return ""
    size = saved["data_parallel_size"] * layout.tensor_parallel_size * layout.pipeline_parallel_size
    return layout.describe(size)


def _devices(run: ReportedRun) -> str:
    record = read_record(run.folder)
    return "" if record is None else f"{record.world_size} x {record.hardware}"


def _precision(run: ReportedRun) -> str:
    return str(run.manifest.get("identity", {}).get("precision", run.config.precision))


def _unit(run: ReportedRun) -> str:
    return "pairs" if isinstance(run.config, PretrainConfig) else "pictures"


def _seen(run: ReportedRun) -> str:
    last = run.log.lines()[-1]
    position, epoch = last.get("data_position"), last.get("epoch")
    if position is None or epoch is None:
        return ""
    return f"{position:,.0f} {_unit(run)}, {epoch:.3g} epochs"


def _data(run: ReportedRun) -> str:
    order = run.manifest.get("identity", {}).get("order", {})
    sets = order.get("data_sets", {}) | ({"shards": order["shards"]} if "shards" in order else {})
    return ", ".join(f"{name} {_hash(sha256)}" for name, sha256 in sets.items())


def _lineage(run: ReportedRun) -> Mapping[str, Any]:
    lineage: Mapping[str, Any] = run.manifest.get("identity", {}).get("lineage", {})
    return lineage


def _hash(sha256: Any) -> str:
    return "" if sha256 is None else str(sha256)[:_HASH_DIGITS]


def _start(run: ReportedRun) -> str:
    start = run.manifest.get("identity", {}).get("start")
    if start:
        return f"{start['folder']}, step {start['step']:,} ({_hash(start['sha256'])})"
    if isinstance(run.config, PretrainConfig) and run.config.initialize_from is not None:
        return run.config.initialize_from
    return "fresh"


def _dates(run: ReportedRun) -> str:
    times = [entry["unix_seconds"] for entry in run.log.lines() if "unix_seconds" in entry]
    if not times:
        return ""
    first, last = (f"{datetime.fromtimestamp(each, UTC):%Y-%m-%d %H:%M}" for each in _ends(times))
    return f"{first} to {last} UTC"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return values[0], values[-1]


def _time(run: ReportedRun) -> str:
    """Return the time of the steps that stand in the log, pauses between them included."""
    seconds = [entry["line_seconds"] for entry in run.log.lines() if "line_seconds" in entry]
    return duration(sum(seconds)) if seconds else ""


def _speed(run: ReportedRun) -> str:
    for unit in ("pairs", "images"):
        for curve in curves(run.log.entries, {f"{unit}_per_second": unit}):
            speed = statistics.median(curve.values)
            digits = 0 if speed >= 100 else 2 - math.floor(math.log10(speed)) if speed > 0 else 0
            return f"{speed:,.{max(digits, 0)}f} {_unit(run)} per second"
    return ""


def _skips(run: ReportedRun) -> str:
    back = len(run.log.rolled_back)
    rolled_back = f"; rollbacks: {back}" if back else ""
    return f"{len(run.log.skipped)}{rolled_back}"


def _versions(run: ReportedRun) -> str:
    return ", ".join(f"{name} {each}" for name, each in run.manifest.get("versions", {}).items())
