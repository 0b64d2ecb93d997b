"""Hostile payloads that create a file when they are executed."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.data.token_shards import npy


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Canary:
    """The file that a payload creates, and the payloads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.command = f"touch {path}"

    @property
    def is_there(self) -> bool:
        return self._path.exists()

    def pickled(self) -> bytes:
        return pickle.dumps(Payload(self.command))

    def saved_by_torch(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({"weights": Payload(self.command)}, buffer)
        return buffer.getvalue()

    def in_an_array(self) -> bytes:
        """Return an .npy file of one Python object."""
        return npy(np.array([[Payload(self.command)]], dtype=object))
