"""A folder with a model: its files, its weights and its hash.

Nothing is unpickled, nothing is downloaded, and no code of the folder runs: settings are JSON,
weights are safetensors, and the classes are given both instead of the folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file, sha256_of_json
from ernie_vilg.storage.json_files import read_object

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_READ_FILES = (
    CONFIG,
    WEIGHTS,
    "preprocessor_config.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    # ctranslate2
    "model.bin",
    "shared_vocabulary.json",
    "shared_vocabulary.txt",
    "source_vocabulary.json",
    "source_vocabulary.txt",
    "target_vocabulary.json",
    "target_vocabulary.txt",
    "source.spm",
    "target.spm",
)
"""Every file that any model is read from; others in a folder change nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A local folder that a setting names."""

    path: Path
    """The folder; its files may be links."""
    setting: str
    """Name of the setting, for messages."""

    def sha256(self) -> str:
        """Return the hash of the model, 64 hexadecimal digits.

        It is the SHA-256 of a JSON object with the name and the SHA-256 of each file that a model
        may be read from; a README beside them does not count.
        """
        files = [name for name in _READ_FILES if (self.path / name).is_file()]
        return sha256_of_json({name: sha256_of_file(self.path / name) for name in files})

    def require(self, name: str, why: str) -> Path:
        """Return the path of a file.

        Raises:
            InputError: it is missing.
        """
        if not (self.path / name).is_file():
            raise InputError(
                f"{self} has no {name}, {why}: name a folder that holds it "
                "(docs/curation.md, Models, lists the files of each kind)"
            )
        return self.path / name

    def json(self, name: str, why: str) -> dict[str, Any]:
        """Return a JSON object that must be there.

        Raises:
            InputError: it is missing or no JSON object.
        """
        return read_object(self.require(name, why))

    def optional_json(self, name: str) -> dict[str, Any]:
        """Return a JSON object; an empty one where there is no such file."""
        return read_object(self.path / name) if (self.path / name).is_file() else {}

    def weights(self) -> Mapping[str, Any]:
        """Return the tensors of `model.safetensors` by name.

        Raises:
            InputError: it is missing or damaged; a pickle in its place is refused.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (self.path / WEIGHTS).is_file() and (self.path / "pytorch_model.bin").exists():
            raise InputError(
                f"{self} has pytorch_model.bin, a pickle, which can run code and is not read: "
                "convert it once, where you trust it, by the command in docs/curation.md, Models"
            )
        path = self.require(WEIGHTS, "the weights in one file")
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): copy it again") from error

    def __str__(self) -> str:
        return f"{self.setting}={self.path}"
