"""The whole state from which training resumes, independent of the layout.

It has one file for each parameter and state (weights, both moments and, if there is one, the
average of the weights), and a few counters.

Source: DeepSpeed's universal checkpoints (arXiv:2406.18820), whose files these are.
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
    read_model_file,
    read_optimizer_file,
    read_tensor,
    write_tensor,
)
from ernie_vilg.parallel.state.frozen_weights import frozen_weights

_MODEL_FILES = "*mp_rank_*_model_states.pt"


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counters of steps and samples; `asdict` makes a JSON object of them."""

    optimizer_steps: float
    """Number of updates that AdamW has made, which corrects the bias of its moments."""
    global_steps: int
    """Number of steps that DeepSpeed has counted."""
    global_samples: int
    """Number of pairs that DeepSpeed has counted."""
    skipped_steps: int
    """Number of steps that DeepSpeed has skipped."""
    loss_scale: Mapping[str, float]
    """State of the dynamic loss scale, by DeepSpeed's names; empty unless in float16."""


class WholeState:
    """A whole state in a folder that `write_whole_state` wrote."""

    def __init__(self, folder: Path, config: ModelConfig, counters: Counters) -> None:
        """Open a folder.

        Args:
            folder: the folder; the caller must have checked the hashes of its files.
            config: shape of the model.
            counters: result of `write_whole_state`.
        """
        self._folder = folder
        self.config = config
        self.counters = counters
        self.shapes = parameter_shapes(config)
        has_average = next(folder.glob(f"*/{WEIGHT_AVERAGE}.pt"), None) is not None
        self.states = (WEIGHTS, *MOMENTS, *([WEIGHT_AVERAGE] if has_average else []))
        """Names of the states of a parameter that trains; others have their weights only."""

    def read(self, name: str, state: str) -> Tensor:
        """Return a state of a parameter: its weights, a moment or the average.

        Returns:
            whole tensor, float32 on the CPU, mapped from the file.
        """
        value = read_tensor(self._folder / name / f"{state}.pt", mmap=True)
        return value.view(self.shapes[name])  # flat if it came from ZeRO 3


def write_whole_state(
    folder: Path, output: Path, config: ModelConfig, do_all: DoAll = map
) -> Counters:
    """Consolidate a DeepSpeed checkpoint of any layout.

    Args:
        folder: DeepSpeed's tag folder, which is not changed; the caller must have checked the
            hashes of its files.
        output: folder to write.
        config: shape of the model.
        do_all: runs the tasks; see `convert`.

    Raises:
        InputError: no update has been made yet, or the model is of another version.
    """
    _, states = read_optimizer_file(folder)
    if not states:
        raise InputError(
            f"{folder.parent} was saved before the optimizer's first update: resume it under the "
            "layout that it was saved under until an update is made"
        )
    convert(folder, output, do_all)
    if has_average(states):
        average = output.with_name(f"{output.name}-average")
        convert_average(folder, average, do_all)
        _move_average(average, output)
    for name, value in frozen_weights(folder, config, parameter_shapes(config)):
        write_tensor(output / name / f"{WEIGHTS}.pt", value)
    _keep_originals(output, config)
    return read_counters(folder)


def read_counters(folder: Path) -> Counters:
    """Read the counters from DeepSpeed's tag folder, whose hashes the caller must have checked."""
    content, states = read_optimizer_file(folder)
    steps = {float(state["step"]) for state in states.values()}
    assert len(steps) == 1, f"AdamW's shards count different numbers of updates: {sorted(steps)}"
    model = read_model_file(min(folder.glob(_MODEL_FILES)))
    return Counters(
        optimizer_steps=steps.pop(),
        global_steps=model["global_steps"],
        global_samples=model["global_samples"],
        skipped_steps=model["skipped_steps"],
        loss_scale=saved_loss_scale(content),
    )


def has_average(states: Mapping[int, Mapping[str, Any]]) -> bool:
    """Return whether AdamW's states contain an average of the weights."""
    return any(WEIGHT_AVERAGE in state for state in states.values())


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the shape of each whole parameter by name."""
    with torch.device("meta"):
        parameters = build_transformer(config).named_parameters()
    return {name: parameter.shape for name, parameter in parameters}


def require_parameters(found: Set[str], config: ModelConfig) -> None:
    """Check that names are exactly those of a model's parameters.

    Raises:
        InputError: names are missing or unknown.
    """
    expected = set(parameter_shapes(config))
    if found != expected:
        raise InputError(
            f"the checkpoint lacks parameters {sorted(expected - found)} and has unknown ones "
            f"{sorted(found - expected)}: it is of another version of the model"
        )


def _move_average(source: Path, output: Path) -> None:
    for file in sorted(source.glob(f"*/{WEIGHT_AVERAGE}.pt")):
        file.rename(output / file.parent.name / file.name)
    shutil.rmtree(source)


def _keep_originals(output: Path, config: ModelConfig) -> None:
    """Drop the last stage's copies of tied weights, and check the names of the rest."""
    for folder in sorted(output.iterdir()):
        if original_name(folder.name, config) != folder.name:
            shutil.rmtree(folder)
    require_parameters({path.name for path in output.iterdir()}, config)
