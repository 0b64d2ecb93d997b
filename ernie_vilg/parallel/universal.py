"""From the files of many ranks to whole tensors, on one CPU machine.

DeepSpeed's universal-checkpoint converter puts ZeRO's flat slices and the shares of tensor
and pipeline ranks together; it needs to be told by name how each parameter is split.

Source: DeepSpeed's universal checkpointing (arXiv:2406.18820).
"""

import contextlib
import io
import re
from argparse import Namespace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.optimizer import WEIGHT_AVERAGE

WEIGHTS = "fp32"
"""The converter's name of the weights, as `WEIGHT_AVERAGE` is ours of their average."""

# How DeepSpeed names what an optimizer file holds: under ZeRO 1 and 2, and under ZeRO 3.
_OPTIMIZER_FILES = "*_optim_states.pt"
_STATES = ("base_optimizer_state", "optimizer_state_dict")
_FLAT_WEIGHTS = ("single_partition_of_fp32_groups", "fp32_flat_groups")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@lru_cache(maxsize=1)  # asked at every checkpoint
def universal_checkpoint_info(config: ModelConfig) -> dict[str, Any]:
    """Return what the converter must know of our parameters: which are whole, which split by row.

    It takes patterns of names, and those without one for split by column; ours are the very names.
    """
    with torch.device("meta"):
        names = list(build_transformer(config).state_dict())
    dimensions = {name: split_dimension(name) for name in names}
    return {
        "universal_checkpoint_version": 0.2,
        "tp_replicated_parameter_patterns": [
            f"^{re.escape(name)}$" for name in names if dimensions[name] is None
        ],
        "parameter_with_row_parallelism_patterns": [
            f"^{re.escape(name)}$" for name in names if dimensions[name] == 1
        ],
    }


def gather_weights(folder: Path, state: str = WEIGHTS) -> dict[str, Tensor]:
    """Read the whole weights, or their average, out of a DeepSpeed checkpoint of any layout.

    The converter knows weights and moments alone. For the average it is given copies of the
    optimizer's files in which the average stands in the place of all of them.

    Args:
        folder: the folder that DeepSpeed wrote into (its tag folder), which is left as it is. Its
            files hold pickles: the caller has checked their hashes.
        state: `WEIGHTS`, or `WEIGHT_AVERAGE` for their moving average.

    Returns:
        each parameter's value by name, float32 on the CPU; flat where the checkpoint is of ZeRO 3,
        which does not keep shapes.

    Raises:
        ValueError: the checkpoint holds no average.
    """
    with TemporaryDirectory(dir=folder.parent.parent, prefix=".gathering-") as scratch:
        source, universal = folder, Path(scratch) / "universal"
        if state == WEIGHT_AVERAGE:
            source, state = Path(scratch) / "averaged", _MOMENTS[0]
            _write_averaged(folder, source)
        convert(source, universal)
        return {
            file.parent.name: _value(file) for file in sorted(universal.glob(f"zero/*/{state}.pt"))
        }


def convert(folder: Path, output: Path) -> None:
    """Write a DeepSpeed checkpoint anew in DeepSpeed's universal form, one parameter per folder.

    Args:
        folder: the folder that DeepSpeed wrote into (its tag folder).
        output: the folder to write.
    """
    arguments = Namespace(
        input_folder=str(folder),
        output_folder=str(output),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=False,
        inject_missing_state=False,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)


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
    is_zero3 = _FLAT_WEIGHTS[1] in shares
    states = shares[_STATES[is_zero3]]["state"]
    if not states or any(WEIGHT_AVERAGE not in state for state in states.values()):
        raise ValueError(
            "the checkpoint holds no average of the weights, as the run had training.ema_decay=0: "
            "export with average=false, or train on with training.ema_decay=0.9999, say"
        )
    shares[_FLAT_WEIGHTS[is_zero3]] = [states[index][WEIGHT_AVERAGE] for index in sorted(states)]
    for state in states.values():
        state.update(dict.fromkeys(_MOMENTS, state[WEIGHT_AVERAGE]))


def _value(file: Path) -> Tensor:
    content = torch.load(file, weights_only=True)
    return content["param"] if isinstance(content, dict) else content
