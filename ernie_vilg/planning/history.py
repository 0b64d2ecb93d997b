"""What real runs measured, and what was predicted for them, as files in their folders.

`measured.json` holds a `RunRecord`; `plan.json` what planning said of the run when it started.

Source: ours.
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
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json

if TYPE_CHECKING:  # it needs torch, which who reads a record may do without
    from ernie_vilg.planning.forecast import Forecast

MEASURED_NAME = "measured.json"
PLAN_NAME = "plan.json"

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class DecidingSettings(Settings):
    """The settings of a run that decide its memory and speed."""

    model: ModelConfig
    """Its shape."""
    objective: ObjectiveConfig
    """Its loss."""
    parallelism: ParallelismConfig
    """Its layout."""
    precision: Precision
    """Number format of weights and activations."""
    compile_blocks: bool
    """Whether blocks were compiled."""
    ema_decay: FractionBelowOne
    """As `TrainingConfig`."""
    num_workers: NumWorkers
    """As `LoaderConfig`."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(Settings):
    """What one run took."""

    hardware: str
    """Name of the device, such as "NVIDIA H100 80GB HBM3", or "cpu"."""
    world_size: Annotated[int, Range(at_least=1, at_most=1 << 20)]
    """Ranks."""
    settings: Mapping[str, Any]
    """The fields of `DecidingSettings` as JSON values."""
    peak_memory_bytes: Annotated[int, Range(at_least=1, at_most=1 << 50)]
    """Largest of all ranks: allocated on a GPU, resident on a CPU."""
    seconds_per_step: Annotated[float, Range(at_least=1e-9, at_most=1e9)]
    """Median."""
    parts: Mapping[str, NaturalFloat]
    """Seconds per step of data, forward, backward, optimizer, communication and other."""


def deciding_settings(config: PretrainConfig, precision: str) -> dict[str, Any]:
    """Return the settings of a run that decide its memory and speed, as JSON values.

    Args:
        config: the run.
        precision: that it computes in, such as "bfloat16".
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
    """Write down what a run measured, whole or not at all."""
    write_json(run_dir / MEASURED_NAME, asdict(record))


def read_record(run_dir: Path) -> RunRecord | None:
    """Read what a run measured; None where it has not got that far.

    Raises:
        InputError: the file is no record of this version.
    """
    path = run_dir / MEASURED_NAME
    if not path.is_file():
        return None
    try:
        return from_json(read_json(path), RunRecord, str(path))
    except InputError as error:
        raise InputError(f"{error}; or leave the run out, if it is not of this version") from error


def write_plan(run_dir: Path, world_size: int, predicted: "Forecast") -> None:
    """Write down what is predicted for a run.

    Args:
        run_dir: of the run.
        world_size: ranks.
        predicted: for it; without a step where the kind of GPU is not known.
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
    write_json(run_dir / PLAN_NAME, content)
