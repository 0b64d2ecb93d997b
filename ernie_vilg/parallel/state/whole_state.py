"""All that training goes on from, whole: neither spread over ranks nor of any layout.

One file for each parameter and each of weights, moments and, where there is one, the average of
the weights; and the few numbers that count steps.

Source: ours; the files are those of DeepSpeed's universal checkpoints (arXiv:2406.18820).
"""

import shutil
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.initialization import original_name
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine.library_patches import DoAll
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.engine.zero_shards import saved_loss_scale
from ernie_vilg.parallel.state.consolidate import (
    MOMENTS,
    WEIGHTS,
    convert,
    convert_average,
    read_optimizer_file,
    read_tensor,
)

_MODEL_FILES = "*mp_rank_*_model_states.pt"


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What counts steps. A JSON object once it is a dictionary."""

    optimizer_steps: float
    """Updates that AdamW has made, by which it corrects its moments."""
    global_steps: int
    """Steps, by DeepSpeed's count."""
    global_samples: int
    """Pairs, by DeepSpeed's count."""
    skipped_steps: int
    """Steps that DeepSpeed called off."""
    loss_scale: Mapping[str, float]
    """What a dynamic loss scale goes on from, by DeepSpeed's names; empty but in float16."""


class WholeState:
    """A folder that `write_whole_state` wrote."""

    def __init__(self, folder: Path, config: ModelConfig, counters: Counters) -> None:
        """Prepare to read.

        Args:
            folder: the folder; the caller has checked the hashes of its files.
            config: the model's shape.
            counters: what `write_whole_state` returned.
        """
        self._folder = folder
        self.config = config
        self.counters = counters
        self.shapes = parameter_shapes(config)
        has_average = next(folder.glob(f"*/{WEIGHT_AVERAGE}.pt"), None) is not None
        self.states = (WEIGHTS, *MOMENTS, *([WEIGHT_AVERAGE] if has_average else []))
        """Names of what there is of every parameter."""

    def read(self, name: str, state: str) -> Tensor:
        """Return a parameter's weights, a moment or the average.

        Returns:
            float32 on the CPU, of the parameter's whole shape; read as it is used.
        """
        value = read_tensor(self._folder / name / f"{state}.pt", mmap=True)
        return value.view(self.shapes[name])  # flat where it came from ZeRO 3


def write_whole_state(
    folder: Path, output: Path, config: ModelConfig, do_all: DoAll = map
) -> Counters:
    """Put a DeepSpeed checkpoint of any layout together.

    Args:
        folder: the folder that DeepSpeed wrote into (its tag folder), which is left as it is. Its
            files hold pickles: the caller has checked their hashes.
        output: the folder to write.
        config: the model's shape.
        do_all: does the work; see `convert`.

    Raises:
        InputError: no update has been made yet, or the model is of another version.
    """
    _, states = read_optimizer_file(folder)
    if not states:
        raise InputError(
            f"{folder.parent} was saved before the optimizer's first update: go on with the layout "
            "it was saved under until one is made"
        )
    convert(folder, output, do_all)
    if has_average(states):
        average = output.with_name(f"{output.name}-average")
        convert_average(folder, average, do_all)
        _move_average(average, output)
    _keep_originals(output, config)
    return read_counters(folder)


def read_counters(folder: Path) -> Counters:
    """Read what counts steps out of the folder that DeepSpeed wrote into.

    Its files hold pickles: the caller has checked their hashes.
    """
    shares, states = read_optimizer_file(folder)
    steps = {float(state["step"]) for state in states.values()}
    assert len(steps) == 1, f"AdamW counts different numbers of updates: {sorted(steps)}"
    model = torch.load(
        min(folder.glob(_MODEL_FILES)), map_location="cpu", mmap=True, weights_only=False
    )
    return Counters(
        optimizer_steps=steps.pop(),
        global_steps=model["global_steps"],
        global_samples=model["global_samples"],
        skipped_steps=model["skipped_steps"],
        loss_scale=saved_loss_scale(shares),
    )


def has_average(states: Mapping[int, Mapping[str, Any]]) -> bool:
    """Say whether AdamW's states hold an average of the weights."""
    return any(WEIGHT_AVERAGE in state for state in states.values())


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the whole shape of each parameter by name."""
    with torch.device("meta"):
        parameters = build_transformer(config).named_parameters()
    return {name: parameter.shape for name, parameter in parameters}


def require_parameters(found: Set[str], config: ModelConfig) -> None:
    """Check that names are those of a model's parameters.

    Raises:
        InputError: some lack, or are too many.
    """
    expected = set(parameter_shapes(config))
    if found != expected:
        raise InputError(
            f"the checkpoint lacks {sorted(expected - found)} and has in excess "
            f"{sorted(found - expected)}: it is of another version of the model"
        )


def _move_average(source: Path, output: Path) -> None:
    for file in sorted(source.glob(f"*/{WEIGHT_AVERAGE}.pt")):
        file.rename(output / file.parent.name / file.name)
    shutil.rmtree(source)


def _keep_originals(output: Path, config: ModelConfig) -> None:
    """Drop the last stage's copies of tied weights, and check that nothing else is there."""
    for folder in sorted(output.iterdir()):
        if original_name(folder.name, config) != folder.name:
            shutil.rmtree(folder)
    require_parameters({path.name for path in output.iterdir()}, config)
