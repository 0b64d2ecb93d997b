"""Measurements of real runs and the predictions for them, as files in the run folders.

`measured.json` holds a `RunRecord`, `plan.json` the prediction made when the run started.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.config.schema import (
    FractionBelowOne,
    NaturalFloat,
    NumWorkers,
    Range,
    Settings,
    from_json,
)
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json

if TYPE_CHECKING:  # it needs torch, and reading a record does not
    from ernie_vilg.planning.forecast import Forecast

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class DecidingSettings(Settings):
    """The settings of a run that determine its memory and speed."""

    model: ModelConfig
    """Shape of the model."""
    objective: ObjectiveConfig
    """Settings of the loss."""
    parallelism: ParallelismConfig
    """Layout over the ranks."""
    precision: Precision
    """Number format of weights and activations."""
    compile_blocks: bool
    """Whether blocks were compiled."""
    ema_decay: FractionBelowOne
    """Decay of the average of the weights, as in `TrainingConfig`."""
    num_workers: NumWorkers
    """Loader processes per rank, as in `LoaderConfig`."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(Settings):
    """Memory and time that one run took."""

    hardware: str
    """Name of the device, such as "NVIDIA H100 80GB HBM3", or "cpu"."""
    world_size: Annotated[int, Range(at_least=1, at_most=1 << 20)]
    """Number of ranks."""
    settings: Mapping[str, Any]
    """The fields of `DecidingSettings` as JSON values."""
    peak_memory_bytes: Annotated[int, Range(at_least=1, at_most=1 << 50)]
    """Largest peak of all ranks: allocated bytes on a GPU, resident bytes on a CPU."""
    seconds_per_step: Annotated[float, Range(at_least=1e-9, at_most=1e9)]
    """Median seconds per step."""
    parts: Mapping[str, NaturalFloat]
    """Seconds per step of data, forward, backward, optimizer, communication and other."""


def deciding_settings(config: PretrainConfig, precision: str) -> dict[str, Any]:
    """Return the settings of a run that determine its memory and speed, as JSON values.

    Args:
        config: settings of the run.
        precision: number format that it computes in, such as "bfloat16".
    """
    return asdict(
        DecidingSettings(
            model=config.model,
            objective=config.objective,
            parallelism=config.parallelism,
            precision=cast(Precision, precision),
            compile_blocks=config.compile_blocks,
            ema_decay=config.training.ema_decay,
            num_workers=config.data.loader.num_workers,
        )
    )


def write_record(run_dir: Path, record: RunRecord) -> None:
    """Write the measurements of a run, whole or not at all."""
    write_json(RunFolder(run_dir).measured, asdict(record))


def read_record(run_dir: Path) -> RunRecord | None:
    """Read the measurements of a run; None if it has none yet.

    Raises:
        InputError: the file is not a record of this version.
    """
    path = RunFolder(run_dir).measured
    if not path.is_file():
        return None
    try:
        return from_json(read_json(path), RunRecord, str(path))
    except InputError as error:
        raise InputError(f"{error}; or leave the run out, if it is not of this version") from error


def write_plan(run_dir: Path, world_size: int, predicted: "Forecast") -> None:
    """Write the prediction for a run.

    Args:
        run_dir: the run folder.
        world_size: number of ranks.
        predicted: the prediction; without a step if the kind of GPU is unknown.
    """
    step = predicted.step
    content = {
        "world_size": world_size,
        "memory_bytes": [
            {**asdict(estimate), "total": estimate.total} for estimate in predicted.memory
        ],
        "seconds_per_step": None if step is None else step.total,
        "parts": None if step is None else asdict(step),
    }
    write_json(RunFolder(run_dir).plan, content)
