"""Counts what makes the host wait for the device, and says where.

A GPU works while the host prepares what comes next. A value that the host reads, and a copy that is
not asynchronous, end that: the host waits until the GPU has done all it was given. This module
counts such places while a block runs: on a GPU CUDA's own warnings of them
(`torch.cuda.set_sync_debug_mode`), and everywhere the calls that wait for a stream or an event.

Without a GPU, a CPU can stand for the device: every tensor counts as one on the device, and
operators that read values, or give a result whose shape depends on values, are counted. Copies from
and to a device cannot be seen there, except by the methods that are for nothing else.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

from ernie_vilg.parallel.engine.library_patches import replaced

_aten = torch.ops.aten

_READS = {
    _aten._local_scalar_dense.default: "a number is read",
    _aten.equal.default: "two tensors are compared",
    _aten.nonzero.default: "a shape depends on values (nonzero)",
    _aten.masked_select.default: "a shape depends on values (masked_select)",
    _aten._unique2.default: "a shape depends on values (unique)",
    _aten.repeat_interleave.Tensor: "a shape depends on values (repeat_interleave)",
}
_MAX_FRAMES = 4
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class HostWait:
    """One place at which the host waits."""

    kind: str
    """Description of the wait."""
    stack: tuple[str, ...]
    """Innermost calls outside torch, outermost first, as file:line function."""

    def __str__(self) -> str:
        return f"{self.kind}: {' > '.join(self.stack)}"


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[HostWait]]:
    """Collect the waits in the block.

    Args:
        device: the device that works, or a CPU that stands for it.
    """
    found: list[HostWait] = []

    def note(kind: str) -> None:
        found.append(HostWait(kind=kind, stack=_stack()))

    with ExitStack() as patches:
        for owner, attributes in _patches(device, note):
            patches.enter_context(replaced(owner, **attributes))
        is_on_gpu = device.type == "cuda"
        patches.enter_context(_cuda_warnings(note) if is_on_gpu else _Operators(note))
        yield found


class _Operators(TorchDispatchMode):
    """Sees every operator on a CPU."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note an operator that waits, and run it."""
        if func in _READS:
            self._note(_READS[func])
        elif func is _aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            self._note("a shape depends on values (a mask as index)")
        return func(*args, **(kwargs or {}))


@contextmanager
def _cuda_warnings(note: Callable[[str], None]) -> Iterator[None]:
    """Note each of CUDA's warnings of an operator that waits."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def noted(message: Any, *arguments: Any, **options: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                note("a synchronizing operation")
            elif "debug mode is a prototype" not in str(message):
                show(message, *arguments, **options)

        warnings.simplefilter("always")
        warnings.showwarning = noted
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _patches(
    device: torch.device, note: Callable[[str], None]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield owners and the attributes to replace in them."""

    def noted(owner: Any, name: str, kind: str, when: Callable[..., bool] | None = None) -> Any:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if when is None or when(*arguments, **options):
                note(kind)
            return original(*arguments, **options)

        return owner, {name: call}

    def is_moved(data: Any, *_: Any, device: Any = None, **__: Any) -> bool:
        return device is not None and not isinstance(data, Tensor)

    if device.type == "cpu":
        yield noted(torch.Tensor, "tolist", "a list is read")
        yield noted(torch.Tensor, "cpu", "a copy to the host")
        yield noted(torch, "tensor", "a copy to the device", is_moved)
        yield noted(torch, "as_tensor", "a copy to the device", is_moved)
    yield noted(torch.cuda, "synchronize", "synchronize")
    yield noted(torch.cuda.Event, "synchronize", "an event is waited for")
    yield noted(torch.cuda.Stream, "synchronize", "a stream is waited for")
    yield noted(ProcessGroup, "barrier", "a barrier")
    yield from _accelerators(noted)


def _accelerators(noted: Callable[..., Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield DeepSpeed's own way to synchronize."""
    from deepspeed.accelerator import get_accelerator  # takes seconds to import

    yield noted(type(get_accelerator()), "synchronize", "synchronize, by DeepSpeed's accelerator")


def _stack() -> tuple[str, ...]:
    own = str(Path(__file__))
    torchs = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename != own and not frame.filename.startswith(torchs)
    ]
    return tuple(
        f"{frame.filename.removeprefix(f'{_ROOT}/')}:{frame.lineno} {frame.name}"
        for frame in frames[-_MAX_FRAMES:]
    )
