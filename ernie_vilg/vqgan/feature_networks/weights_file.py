"""Weights of a network that others trained, read from a file that the settings name.

The file must have the SHA-256 of the settings, so that two runs compare by the same network. It is
read without running code from it: as safetensors, or as a .pth of tensors alone.
"""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file

_COUNTER = "num_batches_tracked"
"""Buffer of batch normalization that only training reads; older files lack it."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """File of a network's weights."""

    path: Path
    """File, .safetensors or .pth."""
    sha256: str
    """SHA-256 that it must have, 64 hexadecimal digits."""
    setting: str
    """Name of the setting that holds the path, for messages."""
    origin: str
    """Place where people get such a file, for messages."""

    def load_into(self, network: nn.Module) -> None:
        """Set a network's weights and freeze it, in evaluation mode.

        Tensors that the network has no use for are ignored: files of whole classifiers serve
        networks of their first layers.

        Raises:
            InputError: the file is missing, differs from its hash, cannot be read without running
                code, or lacks a tensor, or has one of another shape or with values not finite.
        """
        tensors = self._read()
        expected = {
            name: value
            for name, value in network.state_dict().items()
            if not name.endswith(_COUNTER)
        }
        for name, value in expected.items():
            self._check_tensor(name, tensors.get(name), value.shape)
        network.load_state_dict({name: tensors[name].float() for name in expected}, strict=False)
        network.eval().requires_grad_(False)

    def _read(self) -> dict[str, Tensor]:
        if not self.path.is_file():
            raise self._error("is no file")
        found = sha256_of_file(self.path)
        if found != self.sha256:
            raise self._error(
                f"has the SHA-256 {found} where {self.setting}_sha256={self.sha256}: it is damaged "
                "or another file"
            )
        try:
            if self.path.suffix == ".safetensors":
                return load_file(self.path)
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).strip().splitlines()[0]
            raise self._error(f"cannot be read as tensors alone ({reason})") from error
        if not isinstance(content, dict):
            raise self._error("holds no table of tensors")
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}

    def _check_tensor(self, name: str, value: Tensor | None, shape: torch.Size) -> None:
        if value is None:
            raise self._error(f"has no tensor {name}: it is of another network")
        if value.shape != shape or not value.is_floating_point():
            raise self._error(
                f"holds {name} as {value.dtype} {list(value.shape)} where floats {list(shape)} "
                "belong: it is of another network"
            )
        if not value.isfinite().all():
            raise self._error(f"holds NaN or infinite values in {name}")

    def _error(self, fault: str) -> InputError:
        return InputError(f"{self.setting}={self.path} {fault}; name {self.origin}")
