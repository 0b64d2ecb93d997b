"""The training state of an image tokenizer, and its checkpoints.

A checkpoint is one folder: `state.safetensors` holds weights, AdamW's moments and code counts,
`checkpoint.json` holds the step, the run's settings and the hash of the tensors. It appears under
its name when it is complete. A run resumes from the newest checkpoint whose hash matches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW

from ernie_vilg.checkpoint.folder import (
    committed_checkpoints,
    describe_files,
    read_checkpoint_manifest,
    write_checkpoint_manifest,
)
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.parallel.engine.optimizer import build_adamw
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import clear_leftovers, committed_folder, remove, without_name
from ernie_vilg.vqgan.autoencoder import VQGAN

TENSORS_FILE = "state.safetensors"
CHECKPOINTS_KEPT = 2

_MOMENTS = ("exp_avg", "exp_avg_sq")
_CONVOLUTION_DIMS = 4  # [out, in, height, width]


@dataclass(kw_only=True)
class TokenizerState:
    """Everything that a step changes."""

    model: VQGAN
    """Tokenizer with float32 weights, on this rank's device."""
    optimizer: AdamW
    """Optimizer of all of the model's parameters."""
    code_counts: Tensor
    """Uses per code on this rank since codes were last revived, int64 [codebook]."""
    step: int = 0
    """Number of steps taken."""
    seconds: float = 0.0
    """Seconds that all steps so far took, over all restarts."""


def fresh_state(config: TrainImageTokenizerConfig, device: torch.device) -> TokenizerState:
    """Return the state before the first step, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = VQGAN(config.image_tokenizer)
    # Convolutions read channels last on CPUs and GPUs; otherwise each call reorders its input.
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TokenizerState(
        model=model,
        optimizer=build_optimizer(model, config.optimizer),
        code_counts=torch.zeros(
            config.image_tokenizer.codebook_size, dtype=torch.int64, device=device
        ),
    )


def build_optimizer(model: VQGAN, config: OptimizerConfig) -> AdamW:
    """Return AdamW with empty moments; only convolution kernels decay."""
    kernels = [weight for weight in model.parameters() if weight.dim() == _CONVOLUTION_DIMS]
    others = [weight for weight in model.parameters() if weight.dim() != _CONVOLUTION_DIMS]
    optimizer = build_adamw(kernels, others, config)
    for weight in model.parameters():
        # The state that AdamW's first step makes, so that there always is one to save and to load.
        optimizer.state[weight] = {
            "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            **{name: torch.zeros_like(weight) for name in _MOMENTS},
        }
    return optimizer


def save_checkpoint(
    state: TokenizerState, run_dir: Path, identity: Mapping[str, Any], code_counts: Tensor
) -> None:
    """Commit a checkpoint of the state and remove all but the newest two.

    Args:
        state: state after `state.step` steps.
        run_dir: the run's folder.
        identity: settings that a resumed run must share, JSON values.
        code_counts: `state.code_counts` summed over ranks, int64 [codebook].
    """
    folder = RunFolder(run_dir).checkpoint(state.step)
    clear_leftovers(folder.parent)
    with committed_folder(folder, replace=True) as temporary:
        save_file(_tensors(state, code_counts), temporary / TENSORS_FILE)
        write_checkpoint_manifest(
            temporary,
            step=state.step,
            identity=identity,
            files=describe_files(temporary, [temporary / TENSORS_FILE]),
            about={"seconds": state.seconds},
        )
    for old in committed_checkpoints(run_dir)[CHECKPOINTS_KEPT:]:
        remove(without_name(old))


def load_checkpoint(state: TokenizerState, folder: Path, *, is_leader: bool) -> None:
    """Load a checkpoint that `resumable_checkpoint` returned into a fresh state.

    Args:
        state: state to overwrite.
        folder: the checkpoint.
        is_leader: true on the leader, which alone takes the code counts, sums over all ranks.
    """
    content = read_checkpoint_manifest(folder)
    state.step, state.seconds = int(content["step"]), float(content["seconds"])
    tensors = load_file(folder / TENSORS_FILE)
    with torch.no_grad():
        for name, weight in state.model.named_parameters():
            weight.copy_(tensors[f"model.{name}"])
            moments = state.optimizer.state[weight]
            moments["step"].fill_(state.step)
            for moment in _MOMENTS:
                moments[moment].copy_(tensors[f"{moment}.{name}"])
    if is_leader:
        state.code_counts.copy_(tensors["code_counts"])


def _tensors(state: TokenizerState, code_counts: Tensor) -> dict[str, Tensor]:
    tensors = {"code_counts": code_counts.cpu()}
    for name, weight in state.model.named_parameters():
        tensors[f"model.{name}"] = weight.detach().cpu().contiguous()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = state.optimizer.state[weight][moment].cpu().contiguous()
    return tensors
