"""Past runs, predicted again and held against what they measured.

Source: ours.
"""

from dataclasses import replace
from pathlib import Path

from ernie_vilg.config.model import model_config_from_json
from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.planning.calibration import Correction, Pair, errors, learn
from ernie_vilg.planning.history import RunRecord, read_record
from ernie_vilg.planning.plan import worst_memory
from ernie_vilg.planning.step_time import step_time
from ernie_vilg.planning.work import spread_of_layout, work_of_model


def learn_from_runs(config: PlanConfig) -> tuple[Correction, list[str]]:
    """Return what the runs of `history` teach, and lines that say so.

    Raises:
        ValueError: a folder is missing or has no measurement.
    """
    pairs, lines = [], []
    for folder in config.history:
        if not Path(folder).is_dir():
            raise ValueError(f"history={folder} is not a folder: name run folders, or leave it out")
        record = read_record(Path(folder))
        if record is None:
            raise ValueError(
                f"history={folder} has no measured.json: the run has not got to its first "
                "checkpoint, leave it out"
            )
        if record.hardware != config.gpu.name:
            lines.append(f"{folder}: of {record.hardware}, not {config.gpu.name}: not used")
            continue
        pairs.append(_pair(folder, record, config))
    correction = learn(pairs)
    if pairs:
        before, after = errors(pairs, Correction()), errors(pairs, correction)
        lines.append(
            f"{len(pairs)} past runs: mean error of seconds {before[0]:.1%}, {after[0]:.1%} after "
            f"correction; of memory {before[1]:.1%}, {after[1]:.1%}"
        )
    return correction, lines


def _pair(folder: str, record: RunRecord, config: PlanConfig) -> Pair:
    settings = record.settings
    run = replace(
        config,
        model=model_config_from_json(settings["model"]),
        parallelism=ParallelismConfig(**settings["parallelism"]),
        compile_blocks=settings["compile_blocks"],
    )
    spread = spread_of_layout(run.parallelism, record.world_size)
    work = work_of_model(run.model, fused=run.compile_blocks)
    memory = worst_memory(run, record.world_size, config, Correction())
    return Pair(
        run_dir=folder,
        predicted_seconds=step_time(work, spread, config.gpu).total,
        measured_seconds=record.seconds_per_step,
        predicted_bytes=memory.total - memory.fragmentation,
        measured_bytes=record.peak_memory_bytes,
    )
