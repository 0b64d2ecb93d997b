"""The file of a checkpoint that holds the whole state of an image tokenizer's training.

The state is the same on every rank, so the leader writes one file, which any number of ranks loads.
It is a dictionary of tensors and numbers, read without unpickling code:

    steps           steps taken, skipped ones included
    tokenizer       "network": weights and buffers by name; "updates": AdamW's counts of updates, of
                    kernels and of other weights; "exp_avg", "exp_avg_sq" and, where an average is
                    kept, "weight_average": values by the weight's name
    discriminator   the same; None without one
    logit_averages  LeCAM's averages by name; None without
    code_counts     uses per code on all ranks since unused codes were last moved, int64 [codebook]
"""

from pathlib import Path
from typing import Any

import torch

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.vqgan.autoencoder import VQGAN

STATE_FILE = "image_tokenizer_training.pt"
"""Name of the file, relative to the checkpoint."""


def read_state(folder: Path) -> dict[str, Any]:
    """Map the state of a checkpoint into memory; pages that nothing reads stay on the disk.

    Args:
        folder: checkpoint whose hashes the caller has checked.
    """
    state: dict[str, Any] = torch.load(
        folder / STATE_FILE, map_location="cpu", weights_only=True, mmap=True
    )
    return state


def read_tokenizer(folder: Path, config: ImageTokenizerConfig) -> VQGAN:
    """Return the tokenizer of a checkpoint for use: on the CPU, in evaluation mode, frozen.

    It has the average of the weights where the checkpoint holds one.

    Args:
        folder: checkpoint whose hashes the caller has checked.
        config: architecture of the run.
    """
    state = read_state(folder)["tokenizer"]
    model = VQGAN(config)
    model.load_state_dict({**state["network"], **state.get(WEIGHT_AVERAGE, {})})
    return model.eval().requires_grad_(False)
