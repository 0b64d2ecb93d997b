"""A copy of one rank's state in host memory, which is written while training continues.

DeepSpeed collects the content of its files and passes it to a checkpoint engine, which would write
them. Here that engine copies: tensors into host buffers, which the next save reuses, and everything
else by value. Training does not change the copy.

Source: the staging of CheckFreq (Mohan et al., FAST 2021); DeepSpeed's `CheckpointEngine`.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import Tensor

from ernie_vilg.parallel.engine.library_patches import saving_through
from ernie_vilg.parallel.engine.pinned_memory import pinned_bytes


class Snapshot:
    """Copies of the content of one rank's files."""

    def __init__(self, pin: Callable[[int], Tensor] = pinned_bytes) -> None:
        """Allocate nothing yet.

        Args:
            pin: allocates at least so many pinned bytes, uint8, for what is copied from a GPU.
        """
        self.files: dict[str, Any] = {}
        """Content by name of the file, valid until `clear`."""
        self._pin = pin
        self._buffers: dict[str, list[Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Size of the host buffers, whole pages for those of a GPU's tensors."""
        buffers = [buffer for buffers in self._buffers.values() for buffer in buffers]
        return sum(buffer.untyped_storage().nbytes() for buffer in buffers)

    def clear(self) -> None:
        """Drop the content; the next snapshot overwrites its buffers."""
        self.files = {}

    def take(self, name: str, content: Any) -> None:
        """Copy the content of a file.

        Copies of GPU tensors are complete once the block of `catching` has ended.

        Args:
            name: name of the file, relative to the checkpoint.
            content: dictionaries, lists and tuples of tensors and of anything that can be pickled.
        """
        buffers = _Buffers(self._buffers.get(name, []), self._pin)
        self.files[name] = buffers.copy(content)
        self._buffers[name] = buffers.used

    @contextmanager
    def catching(self, engine: Any) -> Iterator[None]:
        """Copy everything that a DeepSpeed engine saves in the block; nothing reaches the disk."""
        is_on_gpu = torch.cuda.is_available()
        if is_on_gpu:
            torch.cuda.synchronize()  # DeepSpeed's side streams may still write
        try:
            with saving_through(engine, _Catcher(self)):
                yield
        finally:
            if is_on_gpu:
                torch.cuda.synchronize()


class _Buffers:
    """The host buffers of one file, in the order of its tensors."""

    def __init__(self, known: list[Tensor], pin: Callable[[int], Tensor]) -> None:
        self._known = known
        self._pin = pin
        self._copies: dict[tuple[Any, ...], Tensor] = {}
        self.used: list[Tensor] = []

    def copy(self, value: Any) -> Any:
        """Return a copy of the value with every tensor in a host buffer."""
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if type(value) in (dict, OrderedDict):
            copied = type(value)((key, self.copy(part)) for key, part in value.items())
            if isinstance(value, OrderedDict):
                vars(copied).update(copy.deepcopy(vars(value)))  # versions of modules
            return copied
        if type(value) in (list, tuple):
            return type(value)(self.copy(part) for part in value)
        return copy.deepcopy(value)

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        # Tied weights are one tensor under two names, and remain one.
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or key not in self._copies:
            self._copies[key] = self._buffer_for(tensor).copy_(tensor, non_blocking=True)
        return self._copies[key]

    def _buffer_for(self, tensor: Tensor) -> Tensor:
        index = len(self.used)
        buffer = self._known[index] if index < len(self._known) else None
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._new_buffer(tensor)
        self.used.append(buffer)
        return buffer

    def _new_buffer(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda or tensor.numel() == 0:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        content = self._pin(tensor.nbytes)[: tensor.nbytes]
        return content.view(tensor.dtype).view(tensor.shape)


class _Catcher(CheckpointEngine):
    """A checkpoint engine of DeepSpeed that copies instead of writing."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot

    def create(self, info: Any) -> None:
        """Begin a save, which needs nothing."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make no folder; the writer of the snapshot does."""

    def save(self, state_dict: Any, path: str) -> None:
        """Copy the content of a file."""
        self._snapshot.take(str(PurePosixPath(path)), state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Refuse to load."""
        raise AssertionError(f"DeepSpeed loads {path} during a save")

    def commit(self, info: Any) -> bool:
        """End a save; the snapshot is committed later."""
        return True

    def preserves_storage_sharing(self) -> bool:
        """Return False: the snapshot copies views, so DeepSpeed need not clone them first."""
        return False
