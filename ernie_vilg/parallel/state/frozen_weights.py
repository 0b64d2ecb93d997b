"""Whole weights of the parameters that a checkpoint has no optimizer state of.

Where adapters train, the optimizer has theirs alone. DeepSpeed's converter knows only the
optimizer's parameters, so the others are read from the files of the model: one per tensor rank, one
per layer and tensor rank of a pipeline, or under ZeRO 3 one per rank, with its part of each.

Source: DeepSpeed 0.19.8, runtime/engine.py (save_checkpoint) and runtime/pipe/module.py.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.model.lora.names import has_optimizer_state
from ernie_vilg.parallel.state.consolidate import read_model_file

_OF_ZERO_3 = re.compile(r".*zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_OF_LAYER = re.compile(r"layer_(\d+)-.*model_(\d+)-model_states\.pt")
_OF_TENSOR_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")

_Parts = dict[str, dict[tuple[int, int], Tensor]]
"""Parts of each parameter by name, then by tensor rank and, under ZeRO 3, data rank."""


def frozen_weights(
    folder: Path, config: ModelConfig, shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Read the parameters without optimizer state from a DeepSpeed checkpoint of any layout.

    Args:
        folder: DeepSpeed's tag folder; the caller must have checked the hashes of its files.
        config: the model's shape.
        shapes: shape of each whole parameter of the model by name.

    Yields:
        name and whole value of each, float32 on the CPU, with the bits that the model computes
        with; nothing for a model without adapters, nor for a parameter that no file has.
    """
    expected = {name for name in shapes if not has_optimizer_state(name, config)}
    if not expected:
        return
    parts = _parts_by_name(folder)
    for name in sorted(expected & parts.keys()):
        yield name, _whole(name, parts[name], shapes[name])


def _parts_by_name(folder: Path) -> _Parts:
    """Map the files of the model; nothing is read before it is used."""
    parts: _Parts = defaultdict(dict)
    for file in sorted(folder.glob("*model_states.pt")):
        prefix, of_module = "", "module"  # a pipeline has files of layers instead of the latter
        if found := _OF_ZERO_3.fullmatch(file.name):
            key, of_module = (int(found[2]), int(found[1])), "frozen_param_fragments"
        elif found := _OF_LAYER.fullmatch(file.name):
            key, prefix = (int(found[2]), 0), f"{int(found[1])}."
        elif found := _OF_TENSOR_RANK.fullmatch(file.name):
            key = int(found[1]), 0
        else:
            continue
        content = read_model_file(file)
        for name, value in (content if prefix else content[of_module] or {}).items():
            if isinstance(value, Tensor):
                parts[prefix + name][key] = value
    return parts


def _whole(name: str, parts: Mapping[tuple[int, int], Tensor], shape: torch.Size) -> Tensor:
    """Join the parts of a parameter: first those of data ranks, then those of tensor ranks."""
    dimension = split_dimension(name)
    tensor_size = 1 + max(tensor_rank for tensor_rank, _ in parts)
    local = list(shape)
    if dimension is not None:
        local[dimension] //= tensor_size
    count = torch.Size(local).numel()
    shards = []
    for rank in range(1 if dimension is None else tensor_size):
        flat = [parts[key].flatten() for key in sorted(parts) if key[0] == rank]
        shards.append(torch.cat(flat)[:count].view(local))  # the last parts may be padded
    whole = shards[0] if dimension is None else torch.cat(shards, dim=dimension)
    return whole.to(torch.float32)
