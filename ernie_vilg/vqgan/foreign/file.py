"""The weights in a checkpoint file that other code wrote.

A training program stores more than weights: callbacks, optimizer states, settings, the
discriminator and the perceptual network of its loss. All of that is skipped and counted. No file is
read in a way that could run code in it: what torch refuses to read without code is refused, with
the way to convert it.

Source: torch.load with weights_only=True (https://pytorch.org/docs/stable/generated/torch.load.html).
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import require_sha256

_PARTS = ("ema", "model", "state_dict")
_WRAPPERS = ("module.", "_orig_mod.")
_SKIPPED = re.compile(r"(loss|model_ema|perceptual_loss|discriminator)\.|quantize\.codebook_used$")
"""Tensors beside the network's: of the loss, of latent diffusion's average, of usage counts."""
_CODE_OBJECT = re.compile(r"Unsupported (?:global|class):? (?:GLOBAL )?([\w.]+)")
_UNREADABLE = (SafetensorError, OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError)
"""Errors of torch and safetensors at a file that is none of theirs: they trust its structure."""


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """Content of a checkpoint."""

    path: Path
    """The file."""
    sha256: str
    """SHA-256 of the file."""
    part: str
    """Part of the file that the weights are from; "file" for all of it."""
    tensors: Mapping[str, Tensor]
    """Tensors of the network by the file's names."""
    skipped: Mapping[str, int]
    """Number of entries that were skipped, by their kind."""


def read_foreign_file(path: Path, *, part: str, sha256: str | None) -> ForeignFile:
    """Read the weights of a checkpoint without running code from it.

    Args:
        path: the file.
        part: setting `weights`: "auto", or the part that holds the weights.
        sha256: SHA-256 that the file must have; None accepts any.

    Raises:
        InputError: the file is missing, is another one, is damaged, holds code, or has no weights.
    """
    if not path.is_file():
        raise InputError(f"checkpoint={path} is no file: name the file of a trained VQGAN")
    found = require_sha256("checkpoint", path, sha256)
    content = _load(path)
    name, entries = _part(content, part, path)
    skipped = {key: _size(value) for key, value in content.items() if name not in ("file", key)}
    tensors: dict[str, Tensor] = {}
    for key, value in _unwrapped(entries).items():
        if isinstance(value, Tensor) and not _SKIPPED.match(key):
            tensors[key] = value
        else:
            kind = f"{name}: {key.partition('.')[0]}.*"
            skipped[kind] = skipped.get(kind, 0) + 1
    return ForeignFile(path=path, sha256=found, part=name, tensors=tensors, skipped=skipped)


@contextmanager
def _no_further_classes() -> Iterator[None]:
    """Let torch refuse classes that a package of this process has declared safe, such as
    argparse.Namespace, so that a file is read alike in every program.
    """
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(declared)


def _load(path: Path) -> dict[str, Any]:
    """Return the top level of a file."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with _no_further_classes():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(_refusal(path, str(error))) from error
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"checkpoint={path} cannot be read ({type(error).__name__}: {reason}): it is damaged, "
            "cut or no checkpoint; get it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(
            f"checkpoint={path} holds a {type(content).__name__}, not tensors by name: name the "
            "checkpoint of a trained VQGAN"
        )
    return content


def _refusal(path: Path, reason: str) -> str:
    """Return why a file with code was refused, and how to convert it."""
    named = _CODE_OBJECT.search(reason)
    if named is None:
        return (
            f"checkpoint={path} cannot be read as tensors: it is damaged or no checkpoint of "
            "torch; get it again"
        )
    plain = path.with_name(f"{path.stem}_weights.pt")
    return (
        f"checkpoint={path} holds more than tensors and plain values (an object of {named[1]}), "
        "and reading it would run code from the file. If you trust its source, convert it once, "
        "on a machine without anything to lose and with the packages that it was trained with:\n"
        f"  python -c {shlex.quote(_recipe(path, plain))}\n"
        f"Then set checkpoint={plain}"
    )


def _recipe(path: Path, plain: Path) -> str:
    """Return the program that copies the tensors of a trusted file, without single quotes."""
    source, target, parts = (json.dumps(each) for each in (str(path), str(plain), _PARTS))
    return (
        "import torch; "
        f'c = torch.load({source}, map_location="cpu", weights_only=False); '
        f"torch.save({{k: dict(c[k]) for k in {parts} if k in c}}, {target})"
    )


def _part(content: dict[str, Any], part: str, path: Path) -> tuple[str, dict[str, Any]]:
    """Return the name and the entries of the part that holds the weights."""
    held = [name for name in _PARTS if isinstance(content.get(name), dict)]
    if part != "auto" and part not in held:
        raise InputError(
            f"weights={part}: {path} has no such part, only {', '.join(held) or 'single tensors'}: "
            "set weights=auto or one of these"
        )
    if part == "auto" and not held:
        return "file", content
    name = held[0] if part == "auto" else part
    return name, content[name]


def _unwrapped(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries without a prefix that all have because a wrapper held the network."""
    for wrapper in _WRAPPERS:
        if entries and all(name.startswith(wrapper) for name in entries):
            entries = {name.removeprefix(wrapper): value for name, value in entries.items()}
    return dict(entries)


def _size(value: Any) -> int:
    """Return the number of entries of a part; 1 for a single value."""
    return len(value) if isinstance(value, dict | list) else 1
