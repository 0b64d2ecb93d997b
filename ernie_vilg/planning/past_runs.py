"""Past runs: their predictions are computed again and compared with their measurements."""

from dataclasses import replace
from pathlib import Path

import torch

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.planning.calibration import Correction, PastRun, errors, learn
from ernie_vilg.planning.history import DecidingSettings, RunRecord, read_record
from ernie_vilg.planning.plan import worst_memory
from ernie_vilg.planning.workload import spread_of_layout, workload_of_run
from ernie_vilg.runs.run_folder import RunFolder


def learn_from_runs(config: PlanConfig) -> tuple[Correction, list[str]]:
    """Return the correction that fits the runs of `history`, and lines about it.

    Raises:
        InputError: a folder is missing, or its measurements are missing or damaged.
    """
    runs, lines = [], []
    for folder in config.history:
        if not Path(folder).is_dir():
            raise InputError(f"history={folder} is not a folder: name run folders, or leave it out")
        record, measured = read_record(Path(folder)), RunFolder(Path(folder)).measured.name
        if record is None:
            raise InputError(
                f"history={folder} has no {measured}, since the run has not reached its first "
                "checkpoint: leave it out"
            )
        if record.hardware != config.gpu.name:
            lines.append(f"{folder}: ran on {record.hardware}, not {config.gpu.name}: not used")
            continue
        try:
            runs.append(_past_run(record, config))
        except (InputError, OverflowError) as error:  # integers too large for a float
            raise InputError(
                f"history={folder} has a {measured} that the plan cannot learn from "
                f"({error}): leave it out"
            ) from error
    correction = learn(runs)
    if runs:
        before, after = errors(runs, Correction()), errors(runs, correction)
        lines.append(
            f"{len(runs)} past runs: mean error of seconds {before[0]:.1%}, {after[0]:.1%} after "
            f"correction; of memory {before[1]:.1%}, {after[1]:.1%}"
        )
    return correction, lines


def _past_run(record: RunRecord, config: PlanConfig) -> PastRun:
    settings = from_json(record.settings, DecidingSettings, "settings")
    if settings.model.lora.rank:
        raise InputError("the run trained adapters, whose seconds the plan does not predict")
    run = replace(
        config,
        model=settings.model,
        objective=settings.objective,
        parallelism=settings.parallelism,
        training=replace(config.training, ema_decay=settings.ema_decay),
        compile_blocks=settings.compile_blocks,
    )
    precision: torch.dtype = getattr(torch, settings.precision)
    memory = worst_memory(run, record.world_size, precision, Correction())
    return PastRun(
        workload=workload_of_run(run),
        spread=spread_of_layout(run.parallelism, record.world_size, settings.num_workers),
        gpu=config.gpu,
        measured_seconds=record.seconds_per_step,
        predicted_bytes=memory.allocated,
        measured_bytes=record.peak_memory_bytes,
    )
