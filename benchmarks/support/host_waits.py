"""Counts what makes the host wait for the device, and says where.

A GPU works while the host prepares what comes next. A value that the host reads, and a copy that is
not asynchronous, end that: the host waits until the GPU has done all it was given. This module
counts such places while a block runs.

Without a GPU, a CPU can stand for the device: every tensor counts as one on the device, except for
those that numpy reads. What only a real device shows (copies between two kinds of memory) is then
seen at the methods that make such copies.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
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
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
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
        patches.enter_context(_Watch(device, note))
        yield found


class _Watch(TorchDispatchMode):
    """Sees every operator."""

    def __init__(self, device: torch.device, note: Callable[[str], None]) -> None:
        super().__init__()
        self._device, self._note = device, note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note an operator that waits, and run it."""
        keywords = kwargs or {}
        if func in _READS and self._is_on_device(args[0]):
            self._note(_READS[func])
        elif func is _aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            self._note("a shape depends on values (a mask as index)")
        result = func(*args, **keywords)
        if func in _COPIES and self._device.type != "cpu":
            self._note_copy(func, args, keywords, result)
        return result

    def _is_on_device(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._device.type

    def _note_copy(
        self, func: Any, args: tuple[Any, ...], keywords: Mapping[str, Any], result: Tensor
    ) -> None:
        source = args[0] if func is _aten._to_copy.default else args[1]
        is_async = keywords.get("non_blocking", False) or (len(args) > 2 and args[2])
        if not isinstance(source, Tensor) or is_async or source.device.type == result.device.type:
            return
        self._note("a copy to the device" if self._is_on_device(result) else "a copy to the host")


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

    def is_on_device(tensor: Tensor, *_: Any) -> bool:
        return tensor.device.type == device.type

    def is_moved(data: Any, *_: Any, device: Any = None, **__: Any) -> bool:
        return device is not None and not isinstance(data, Tensor)

    yield noted(torch.Tensor, "tolist", "a list is read", is_on_device)
    if device.type == "cpu":
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
