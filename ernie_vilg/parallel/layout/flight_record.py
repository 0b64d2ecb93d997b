"""torch's flight recorder: the last collectives of this rank, kept in memory, written after a hang.

torch itself writes the record when a collective on GPUs times out. The watchdog ends a hanging
process before that, and writes the record of every rank first. `torchfrtrace --prefix
collectives-rank_ RUN_DIR/reports` compares NCCL's records of all ranks; gloo's lack the groups that
it needs.

Source: torch.distributed.flight_recorder.
"""

import os
from pathlib import Path
from typing import Any

import torch

_PREFIX = "collectives-rank_"
_DUMPS = ("_dump_nccl_trace", "_dump_fr_trace")
"""Functions of torch that return the record: that of NCCL, which a build with CUDA has, and that of
gloo."""


def record_collectives(folder: Path) -> None:
    """Let torch keep the last collectives in memory, and write them there when one times out.

    Args:
        folder: folder of the records; a variable that is set takes precedence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        # The second is torch's name before 2.9, which users may have set.
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"): str(folder / _PREFIX),
    }
    for names, value in settings.items():
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = value


def record_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's record, as torch names it."""
    return folder / f"{_PREFIX}{rank}"


def recorded_collectives() -> bytes | None:
    """Return this rank's record as torch pickles it; None if this build of torch keeps none."""
    library: Any = torch._C._distributed_c10d
    for name in _DUMPS:
        if hasattr(library, name):
            record: bytes = getattr(library, name)()
            return record
    return None
