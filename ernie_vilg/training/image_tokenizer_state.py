"""Everything of an image tokenizer's run that changes with a step, and its checkpoints.

A checkpoint is one folder: `state.safetensors` with weights, AdamW's moments and code counts,
and `checkpoint.json` with the step, the settings it belongs to and the hash of the tensors.
It appears under its name when it is complete. The newest one whose hash holds is resumed.

Source: ours.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW

from ernie_vilg.config.image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.config.pretrain import OptimizerConfig
from ernie_vilg.files import committed_folder, read_json, sha256_of_file, write_json
from ernie_vilg.training.tracking import METRICS_NAME
from ernie_vilg.vqgan.autoencoder import VQGAN

TENSORS_FILE = "state.safetensors"
MANIFEST_FILE = "checkpoint.json"
FORMAT = "ernie-vilg image tokenizer training 1"
CHECKPOINTS_KEPT = 2

_MOMENTS = ("exp_avg", "exp_avg_sq")
_CONVOLUTION_DIMS = 4  # [out, in, height, width]

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TokenizerState:
    """What a step changes."""

    model: VQGAN
    """Float32 weights, on this rank's device."""
    optimizer: AdamW
    """Of all of the model's parameters."""
    code_counts: Tensor
    """Uses per code on this rank since codes were last revived, int64 [codebook]."""
    step: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Time that all steps so far took, over all restarts."""


def fresh_state(config: TrainImageTokenizerConfig, device: torch.device) -> TokenizerState:
    """Return the state before the first step, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = VQGAN(config.image_tokenizer)
    # Convolutions of the CPU and of GPUs read channels last; else each call reorders.
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
    optimizer = AdamW(
        [
            {"params": kernels, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    for weight in model.parameters():
        # As AdamW's first step would; so that there always is a state to save and to load.
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
        state: after `state.step` steps.
        run_dir: the run's folder.
        identity: settings that a run must share to go on from here, JSON values.
        code_counts: `state.code_counts` summed over ranks, int64 [codebook].
    """
    folder = checkpoints_folder(run_dir) / f"step_{state.step:08d}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with committed_folder(folder, replace=True) as temporary:
        save_file(_tensors(state, code_counts), temporary / TENSORS_FILE)
        content = {
            "format": FORMAT,
            "step": state.step,
            "seconds": state.seconds,
            "sha256": sha256_of_file(temporary / TENSORS_FILE),
            "identity": dict(identity),
        }
        write_json(temporary / MANIFEST_FILE, content)
    for old in committed_checkpoints(run_dir)[CHECKPOINTS_KEPT:]:
        shutil.rmtree(old)


def find_checkpoint(run_dir: Path, identity: Mapping[str, Any]) -> Path | None:
    """Return the newest whole checkpoint of a run, None in a fresh run folder.

    Raises:
        ValueError: the run folder is not fresh and no checkpoint is whole, or the newest whole
            one belongs to other settings.
    """
    folders = committed_checkpoints(run_dir)
    for folder in folders:
        problem = _problem(folder)
        if problem is None:
            _check_identity(folder, read_json(folder / MANIFEST_FILE)["identity"], identity)
            return folder
        logger.warning("checkpoint %s is not used: %s", folder, problem)
    if folders or (run_dir / METRICS_NAME).exists():
        raise ValueError(
            f"{run_dir} holds a run but no whole checkpoint of it: restore its checkpoints folder, "
            "or name another run_dir to start afresh"
        )
    return None


def load_checkpoint(state: TokenizerState, folder: Path, *, is_leader: bool) -> None:
    """Load a checkpoint that `find_checkpoint` returned into a fresh state.

    Args:
        state: is overwritten.
        folder: the checkpoint.
        is_leader: the leader alone takes the code counts, which are sums over ranks.
    """
    content = read_json(folder / MANIFEST_FILE)
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


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest step first."""
    return sorted(checkpoints_folder(run_dir).glob("step_*"), reverse=True)


def checkpoints_folder(run_dir: Path) -> Path:
    """Return where a run's checkpoints are."""
    return run_dir / "checkpoints"


def _tensors(state: TokenizerState, code_counts: Tensor) -> dict[str, Tensor]:
    tensors = {"code_counts": code_counts.cpu()}
    for name, weight in state.model.named_parameters():
        tensors[f"model.{name}"] = weight.detach().cpu().contiguous()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = state.optimizer.state[weight][moment].cpu().contiguous()
    return tensors


def _problem(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, None if its tensors are as they were written."""
    try:
        content = read_json(folder / MANIFEST_FILE)
        actual = sha256_of_file(folder / TENSORS_FILE)
    except (OSError, ValueError) as error:
        return str(error)
    if content.get("format") != FORMAT:
        return f"its format is {content.get('format')!r}, not {FORMAT!r}"
    if actual != content["sha256"]:
        return f"{TENSORS_FILE} differs from its SHA-256"
    return None


def _check_identity(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    different = [
        f"{name}: {theirs.get(name)!r} in the checkpoint, {ours.get(name)!r} now"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if different:
        raise ValueError(
            f"{folder} was written by a run with other settings ({'; '.join(different)}): set them "
            "as they were to go on, or name another run_dir to start afresh"
        )
