"""One rank's state in host memory, so that training goes on while it is written.

DeepSpeed gathers what its files are to hold, and hands it to an object that writes them. Here
another object stands in that one's place and copies what it is handed: tensors into buffers of
the host that are used again at the next save, everything else by value. What training changes
afterwards does not reach the copy.

Source: the staging of CheckFreq (Mohan et al., FAST 2021); DeepSpeed's `CheckpointEngine`.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import Tensor

from ernie_vilg.parallel.engine.library_patches import saving_through


class Snapshot:
    """Copies of what the files of one rank are to hold."""

    def __init__(self) -> None:
        self._files: dict[str, Any] = {}
        self._buffers: dict[str, list[Tensor]] = {}

    @property
    def files(self) -> dict[str, Any]:
        """Content by file name, valid until `clear`."""
        return self._files

    @property
    def num_bytes(self) -> int:
        """Of the host's buffers."""
        return sum(buffer.nbytes for buffers in self._buffers.values() for buffer in buffers)

    def clear(self) -> None:
        """Forget the content; its buffers are overwritten by what comes next."""
        self._files = {}

    def take(self, name: str, content: Any) -> None:
        """Copy what a file is to hold.

        Copies of a GPU's tensors are complete when the block of `catching` has ended.

        Args:
            name: of the file, relative to the checkpoint.
            content: dictionaries, lists and tuples of tensors and of whatever can be pickled.
        """
        place = _Buffers(self._buffers.get(name, []))
        self._files[name] = place.copy(content)
        self._buffers[name] = place.used

    @contextmanager
    def catching(self, engine: Any) -> Iterator[None]:
        """Take what a DeepSpeed engine saves within the block; nothing reaches the disk."""
        is_on_gpu = torch.cuda.is_available()
        if is_on_gpu:
            torch.cuda.synchronize()  # DeepSpeed's own streams may still write
        try:
            with saving_through(engine, _Catcher(self)):
                yield
        finally:
            if is_on_gpu:
                torch.cuda.synchronize()


class _Buffers:
    """The buffers of one file, in the order in which its tensors come."""

    def __init__(self, known: list[Tensor]) -> None:
        self._known = known
        self._copies: dict[tuple[Any, ...], Tensor] = {}
        self.used: list[Tensor] = []

    def copy(self, value: Any) -> Any:
        """Return the value with every tensor in a buffer of ours."""
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if type(value) in (dict, OrderedDict):
            copied = type(value)((key, self.copy(part)) for key, part in value.items())
            if isinstance(value, OrderedDict):
                vars(copied).update(copy.deepcopy(vars(value)))  # torch's versions of modules
            return copied
        if type(value) in (list, tuple):
            return type(value)(self.copy(part) for part in value)
        return copy.deepcopy(value)

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        # Tied weights are one tensor under two names, and stay one.
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or key not in self._copies:
            self._copies[key] = self._buffer_for(tensor).copy_(tensor, non_blocking=True)
        return self._copies[key]

    def _buffer_for(self, tensor: Tensor) -> Tensor:
        index = len(self.used)
        buffer = self._known[index] if index < len(self._known) else None
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self.used.append(buffer)
        return buffer


class _Catcher(CheckpointEngine):
    """Stands where DeepSpeed has what writes its files."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot

    def create(self, info: Any) -> None:
        """Begin; there is nothing to do."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make no folder: whoever writes does."""

    def save(self, state_dict: Any, path: str) -> None:
        """Copy what would be written."""
        self._snapshot.take(str(PurePosixPath(path)), state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Refuse: nothing is loaded during a save."""
        raise AssertionError(f"DeepSpeed loads {path} during a save")

    def commit(self, info: Any) -> bool:
        """End; what is caught is not committed yet."""
        return True

    def preserves_storage_sharing(self) -> bool:
        """Say that views need not be cloned first: the snapshot holds no views."""
        return False
