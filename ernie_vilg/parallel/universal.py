"""From the files of many ranks to whole tensors, on one CPU machine.

DeepSpeed's universal-checkpoint converter puts ZeRO's flat slices and the shares of tensor
and pipeline ranks together; it needs to be told by name how each parameter is split.

Source: DeepSpeed's universal checkpointing (arXiv:2406.18820).
"""

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal
from torch import Tensor


def universal_checkpoint_info() -> dict[str, Any]:
    """Return what the converter must know of our parameters, as patterns of their names."""
    return {
        "universal_checkpoint_version": 0.2,
        "tp_replicated_parameter_patterns": [
            r".*norm\.(weight|bias)$",
            r".*\.(output|down)\.bias$",
            r".*\.(begin_of_image|text_padding|text_position|image_row|image_column|segment)$",
        ],
        "parameter_with_row_parallelism_patterns": [r".*\.(output|down)\.weight$"],
    }


def gather_weights(folder: Path) -> dict[str, Tensor]:
    """Read the whole fp32 weights out of a DeepSpeed checkpoint of any layout.

    Args:
        folder: the folder that DeepSpeed wrote into (its tag folder). Its files hold
            pickles: the caller has checked their hashes.

    Returns:
        each parameter's fp32 value by name, float32 on the CPU; flat where the checkpoint is
        of ZeRO 3, which does not keep shapes.
    """
    with TemporaryDirectory(dir=folder.parent.parent, prefix=".gathering-") as scratch:
        arguments = Namespace(
            input_folder=str(folder),
            output_folder=str(Path(scratch) / "universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=False,
            inject_missing_state=False,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(arguments)
        return {
            file.parent.name: _value(file)
            for file in sorted(Path(scratch).glob("universal/zero/*/fp32.pt"))
        }


def _value(file: Path) -> Tensor:
    content = torch.load(file, weights_only=True)
    return content["param"] if isinstance(content, dict) else content
