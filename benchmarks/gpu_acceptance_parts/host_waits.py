"""Lines of code that make the host wait for the device within a step.

On a GPU torch's sync debug mode reports them. A CPU has no such waits; there the reads of a
tensor's value (`_local_scalar_dense`) are counted, which would wait on a GPU.
"""

import traceback
import warnings
from collections import Counter
from typing import Any
from unittest import mock

import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_acceptance_parts.small_engine import (
    LEARNING_RATE,
    micro_batches,
    small_engine,
)
from benchmarks.support.measurer import Result, Task

_OURS = ("ernie_vilg", "deepspeed")


class _Reads(TorchDispatchMode):
    """Counts reads of tensors' values by the lines that make them."""

    def __init__(self, seen: "Counter[str]") -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if operator is torch.ops.aten._local_scalar_dense.default:
            self._seen[f"read at {_place()}"] += 1
        return operator(*arguments, **(options or {}))


def _place() -> str:
    """Return the innermost lines of ours and of DeepSpeed on the stack."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if any(f"/{name}/" in frame.filename for name in _OURS)
    ]
    return " < ".join(f"{frame.filename[-40:]}:{frame.lineno}" for frame in reversed(frames[-3:]))


def host_waits(task: Task) -> Result:
    """Return the waits of one step after three, by line, and their number."""
    small = small_engine(task)
    batches = micro_batches(small, 0)
    for _ in range(3):
        small.engine.train_batch(batches, LEARNING_RATE)
    seen: Counter[str] = Counter()
    accelerator = get_accelerator()
    theirs = accelerator.synchronize

    def synchronize(*arguments: Any, **options: Any) -> Any:
        seen[f"synchronize at {_place()}"] += 1
        return theirs(*arguments, **options)

    def show(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            seen[f"wait at {_place()}"] += 1

    with mock.patch.object(accelerator, "synchronize", synchronize), warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
            small.engine.train_batch(batches, LEARNING_RATE)
            torch.cuda.set_sync_debug_mode("default")
        else:
            with _Reads(seen):
                small.engine.train_batch(batches, LEARNING_RATE)
    return {"waits": sum(seen.values()), "lines": dict(seen.most_common())}
