"""Consolidates the checkpoint files of many ranks to whole tensors, on one CPU machine.

The files contain pickles: before any function here reads them, the caller must check their hashes.
DeepSpeed's universal-checkpoint converter joins ZeRO's flat shards and the shards of tensor and
pipeline ranks; `engine.split_patterns` tells it how each parameter is split.

Source: DeepSpeed's universal checkpointing (arXiv:2406.18820).
"""

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal
from torch import Tensor

from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine.library_patches import DoAll, conversion_done_by
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.engine.zero_shards import replace_saved_shards, saved_states
from ernie_vilg.storage.files import scratch_folder
from ernie_vilg.storage.literal_paths import path_without_pattern

WEIGHTS = "fp32"
"""The converter's name of the weights."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's moments, in torch and in the converter."""

_OPTIMIZER_FILES = "*_optim_states.pt"
_PARAMETERS_FOLDER = "zero"
_CONVERTED_FOLDER, _POINTER_NAME = ".converted", "latest_universal"


def gather_weights(folder: Path, state: str = WEIGHTS) -> dict[str, Tensor]:
    """Read the whole weights, or their average, from a DeepSpeed checkpoint of any layout.

    Args:
        folder: DeepSpeed's tag folder, which is not changed.
        state: `WEIGHTS`, or `WEIGHT_AVERAGE` for their moving average.

    Returns:
        each parameter's value by name, float32 on the CPU; flat if the checkpoint is of ZeRO 3,
        which does not save shapes.

    Raises:
        InputError: the checkpoint holds no average.
    """
    with scratch_folder(folder.parent.parent, "gathering") as scratch:
        whole = scratch / "whole"
        if state == WEIGHT_AVERAGE:
            convert_average(folder, whole)
        else:
            convert(folder, whole)
        return {file.parent.name: read_tensor(file) for file in sorted(whole.glob(f"*/{state}.pt"))}


def convert(folder: Path, output: Path, do_all: DoAll = map) -> None:
    """Write the whole weights and moments of a DeepSpeed checkpoint, a folder per parameter.

    Args:
        folder: DeepSpeed's tag folder.
        output: folder to write, with files `<parameter>/<state>.pt`.
        do_all: runs the tasks: first one for each rank's file, then one for each parameter.
    """
    arguments = Namespace(
        num_extract_workers=0,
        num_merge_workers=0,
        keep_temp_folder=False,
        strict=False,
        inject_missing_state=False,
    )
    output.mkdir(parents=True)
    with path_without_pattern(folder) as source, path_without_pattern(output) as target:
        arguments.input_folder = source
        arguments.output_folder = f"{target}/{_CONVERTED_FOLDER}"  # it writes a file beside this
        with conversion_done_by(do_all), contextlib.redirect_stdout(io.StringIO()):
            ds_to_universal.main(arguments)
    _keep_parameters_alone(output)


def convert_average(folder: Path, output: Path, do_all: DoAll = map) -> None:
    """Write the whole moving average of the weights, as `convert` writes weights and moments.

    The converter knows weights and moments only, so it gets copies of the optimizer's files in
    which the average replaces all of them.

    Raises:
        InputError: the checkpoint holds no average.
    """
    scratch = output.with_name(f"{output.name}-averaged")
    _write_averaged(folder, scratch)
    convert(scratch, output, do_all)
    shutil.rmtree(scratch)
    for file in output.glob(f"*/{MOMENTS[0]}.pt"):
        file.rename(file.with_name(f"{WEIGHT_AVERAGE}.pt"))
        for other in (WEIGHTS, MOMENTS[1]):
            file.with_name(f"{other}.pt").unlink()


def read_tensor(file: Path, *, mmap: bool = False) -> Tensor:
    """Read a tensor that the converter wrote.

    Args:
        file: file in a folder that `convert` wrote.
        mmap: whether to map the file, which must then stay, instead of reading it.
    """
    content = torch.load(file, weights_only=True, mmap=mmap)
    value: Tensor = content["param"] if isinstance(content, dict) else content
    return value


def write_tensor(file: Path, value: Tensor) -> None:
    """Write a tensor as the converter does; its folder is made, an existing file replaced."""
    file.parent.mkdir(exist_ok=True)
    torch.save({"param": value}, file)


def read_model_file(file: Path) -> dict[str, Any]:
    """Map one of DeepSpeed's files of the model, whose hash the caller must have checked."""
    content: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    return content


def read_optimizer_file(folder: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Read the optimizer file of one rank.

    Args:
        folder: DeepSpeed's tag folder.

    Returns:
        the state of DeepSpeed's optimizer, and in it AdamW's state of each shard; both map the
        file, so no tensor is read yet.
    """
    file = min(folder.glob(_OPTIMIZER_FILES))
    saved = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    content = saved["optimizer_state_dict"]
    return content, saved_states(content)


def _keep_parameters_alone(output: Path) -> None:
    """Remove files that only DeepSpeed's own loading needs, such as copies of the model's files."""
    converted = output / _CONVERTED_FOLDER
    for path in (converted / _PARAMETERS_FOLDER).iterdir():
        if path.is_dir():
            path.rename(output / path.name)
    shutil.rmtree(converted)
    (output / _POINTER_NAME).unlink()


def _write_averaged(folder: Path, output: Path) -> None:
    """Write a checkpoint folder whose optimizer files contain only the average.

    One rank's file is in memory at a time; other files become links to the originals.
    """
    output.mkdir()
    for file in sorted(folder.iterdir()):
        if not file.match(_OPTIMIZER_FILES):
            (output / file.name).symlink_to(file.resolve())
            continue
        # With mmap, the weights and moments, which are not written, are not read either.
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        _put_average_everywhere(content["optimizer_state_dict"])
        torch.save(content, output / file.name)


def _put_average_everywhere(content: dict[str, Any]) -> None:
    """Replace weights and moments by the average in an optimizer file's content, in place.

    The average is read back as a moment: the converter takes missing weights from the model, which
    has no average. All names refer to one tensor, which is written once, so the copy is small.
    """
    states = saved_states(content)
    if not states or any(WEIGHT_AVERAGE not in state for state in states.values()):
        raise InputError(
            "the checkpoint holds no average of the weights, as the run had training.ema_decay=0: "
            "export with average=false, or train on with training.ema_decay above 0, say 0.9999"
        )
    replace_saved_shards(content, [states[index][WEIGHT_AVERAGE] for index in sorted(states)])
    for state in states.values():
        state.update(dict.fromkeys(MOMENTS, state[WEIGHT_AVERAGE]))
