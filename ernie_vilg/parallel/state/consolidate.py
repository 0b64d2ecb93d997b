"""From the files of many ranks to whole tensors, on one CPU machine.

DeepSpeed's universal-checkpoint converter puts ZeRO's flat slices and the shares of tensor
and pipeline ranks together; `engine.split_patterns` tells it how each parameter is split.

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
"""The converter's name of the weights, as `WEIGHT_AVERAGE` is ours of their average."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""torch's and the converter's names of AdamW's moments."""

_OPTIMIZER_FILES = "*_optim_states.pt"
_PARAMETERS_FOLDER = "zero"
_CONVERTED_FOLDER, _POINTER_NAME = ".converted", "latest_universal"


def gather_weights(folder: Path, state: str = WEIGHTS) -> dict[str, Tensor]:
    """Read the whole weights, or their average, out of a DeepSpeed checkpoint of any layout.

    Args:
        folder: the folder that DeepSpeed wrote into (its tag folder), which is left as it is. Its
            files hold pickles: the caller has checked their hashes.
        state: `WEIGHTS`, or `WEIGHT_AVERAGE` for their moving average.

    Returns:
        each parameter's value by name, float32 on the CPU; flat where the checkpoint is of ZeRO 3,
        which does not keep shapes.

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
    """Write weights and moments of a DeepSpeed checkpoint anew, a folder for each parameter.

    Args:
        folder: the folder that DeepSpeed wrote into (its tag folder). Its files hold pickles: the
            caller has checked their hashes.
        output: the folder to write: `<parameter>/<state>.pt`.
        do_all: does the work, of which there is some for each rank's file, then for each
            parameter.
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
        arguments.output_folder = f"{target}/{_CONVERTED_FOLDER}"  # it writes a file beside it
        with conversion_done_by(do_all), contextlib.redirect_stdout(io.StringIO()):
            ds_to_universal.main(arguments)
    _keep_parameters_alone(output)


def convert_average(folder: Path, output: Path, do_all: DoAll = map) -> None:
    """Write the moving average of the weights, as `convert` does weights and moments.

    The converter knows weights and moments alone. It is given copies of the optimizer's files in
    which the average stands in the place of all of them.

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
    """Read what the converter wrote of a parameter.

    Args:
        file: in a folder that `convert` wrote.
        mmap: whether its pages come from the file as they are used; it must then stay.
    """
    content = torch.load(file, weights_only=True, mmap=mmap)
    value: Tensor = content["param"] if isinstance(content, dict) else content
    return value


def read_optimizer_file(folder: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Read one rank's optimizer file, of whichever rank.

    Args:
        folder: the folder that DeepSpeed wrote into. Its files hold pickles: the caller has
            checked their hashes.

    Returns:
        what ZeRO keeps, and in it AdamW's state of each flat share; no tensor is read yet.
    """
    file = min(folder.glob(_OPTIMIZER_FILES))
    content = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    shares = content["optimizer_state_dict"]
    return shares, saved_states(shares)


def _keep_parameters_alone(output: Path) -> None:
    """Remove what only DeepSpeed's own loading needs: copies of the model's files, for one."""
    converted = output / _CONVERTED_FOLDER
    for path in (converted / _PARAMETERS_FOLDER).iterdir():
        if path.is_dir():
            path.rename(output / path.name)
    shutil.rmtree(converted)
    (output / _POINTER_NAME).unlink()


def _write_averaged(folder: Path, output: Path) -> None:
    """Write a checkpoint folder whose optimizer files hold nothing but the average.

    One rank's file is in memory at a time; files of other kinds become links to the originals.
    """
    output.mkdir()
    for file in sorted(folder.iterdir()):
        if not file.match(_OPTIMIZER_FILES):
            (output / file.name).symlink_to(file.resolve())
            continue
        # mmap: what is not written on, the weights and the moments, is not read either.
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        _put_average_everywhere(content["optimizer_state_dict"])
        torch.save(content, output / file.name)


def _put_average_everywhere(shares: dict[str, Any]) -> None:
    """Replace the weights and moments in an optimizer file's content, in place.

    The result is read as a moment: in the place of weights that it does not find here, the
    converter takes those of the model, which are no average. The other names are for the size
    of the copy; one tensor is written once.
    """
    states = saved_states(shares)
    if not states or any(WEIGHT_AVERAGE not in state for state in states.values()):
        raise InputError(
            "the checkpoint holds no average of the weights, as the run had training.ema_decay=0: "
            "export with average=false, or train on with training.ema_decay=0.9999, say"
        )
    replace_saved_shards(shares, [states[index][WEIGHT_AVERAGE] for index in sorted(states)])
    for state in states.values():
        state.update(dict.fromkeys(MOMENTS, state[WEIGHT_AVERAGE]))
