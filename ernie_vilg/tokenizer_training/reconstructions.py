"""Evaluates the tokenizer while it trains: figures of held-out pictures, and a grid of some.

The tokenizer is measured as it will be used: in float32, with the average of the weights where the
run keeps one. Every rank measures a part of the pictures.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.evaluation.reconstruction_figures import ReconstructionFigures
from ernie_vilg.parallel.layout.collectives import LEADER, broadcast_from_leader
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.runs.observation import Observation
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.tokenizer_training.engine import TokenizerEngine
from ernie_vilg.tokenizer_training.export import read_figures, refresh_card
from ernie_vilg.tokenizer_training.pictures import EvaluationPictures
from ernie_vilg.training.callbacks import StepBoundary
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.losses.perceptual import LPIPS
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes

GRID_COLUMNS = 16
"""Number of pictures in the grid of reconstructions."""
_BATCH_SIZE = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """The callback that evaluates the tokenizer."""

    pictures: EvaluationPictures
    """Pictures to measure on."""
    every: int
    """Interval in steps; 0: never."""
    lpips: LPIPS | None = None
    """Network of the figure "lpips", where the loss has it."""
    phase: Phase = Phase.RECONSTRUCT
    """Phase of every rank meanwhile."""
    once: bool = False
    """Whether a step that has been evaluated is not evaluated again."""

    def run(
        self, boundary: StepBoundary[TrainImageTokenizerConfig, TokenizerEngine]
    ) -> Observation | None:
        """Measure on all ranks; the leader writes the figures and the grid; all ranks must call."""
        groups, run_dir, step = boundary.engine.groups, Path(boundary.config.run_dir), boundary.step
        if self.once and broadcast_from_leader(read_figures(run_dir, step)) is not None:
            return None
        tokenizer = boundary.engine.tokenizer()
        measured = self._measure(tokenizer, groups)
        if groups.rank != LEADER:
            return None
        figures, grid = measured.figures(), RunFolder(run_dir).reconstructions(step)
        self._write_grid(tokenizer, groups.device, grid)
        write_json(
            RunFolder(run_dir).tokenizer_figures,
            {
                "step": step,
                "held_out": self.pictures.is_held_out,
                **figures,
                "code_counts": measured.code_counts().tolist(),
            },
        )
        refresh_card(run_dir, step)
        words = self._in_words(figures)
        logger.info("step %d: reconstructions of %s", step, words)
        prefix = "held_out" if self.pictures.is_held_out else "trained_on"
        return Observation(
            metrics={f"{prefix}_{name}": value for name, value in figures.items()},
            pictures={"reconstructions": grid},
            captions={"reconstructions": words},
        )

    def _measure(self, tokenizer: VQGAN, groups: Groups) -> ReconstructionFigures:
        """Return the figures of all pictures, of which every rank measures a part."""
        count, measured = (
            self.pictures.count,
            ReconstructionFigures(tokenizer.config.codebook_size, groups.device, lpips=self.lpips),
        )
        is_shared = count >= groups.data_size  # every rank needs a picture, or measures all
        rank, size = (groups.data_rank, groups.data_size) if is_shared else (0, 1)
        first, end = count * rank // size, count * (rank + 1) // size
        for start in range(first, end, _BATCH_SIZE):
            originals = self.pictures.at(start, min(_BATCH_SIZE, end - start)).to(groups.device)
            codes = tokenizer.encode(from_bytes(originals))
            measured.add(originals, tokenizer.decode(codes), codes)
        if size > 1:
            measured.add_up(dist.all_reduce)
        return measured

    def _write_grid(self, tokenizer: VQGAN, device: torch.device, path: Path) -> None:
        originals = self.pictures.at(0, min(GRID_COLUMNS, self.pictures.count))
        decoded = tokenizer.decode(tokenizer.encode(from_bytes(originals.to(device))))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grid(originals, decoded, path)

    def _in_words(self, figures: Mapping[str, float]) -> str:
        kind = "held-out pictures" if self.pictures.is_held_out else "pictures that are trained on"
        shown = {"psnr": ("PSNR", "dB"), "ssim": ("SSIM", ""), "lpips": ("LPIPS", "")}
        words = [
            f"{name} {figures[key]:.4g} {unit}".strip()
            for key, (name, unit) in shown.items()
            if key in figures
        ]
        usage = f"{100 * figures['codebook_usage']:.0f}% of the codes used"
        return f"{self.pictures.count} {kind}: {', '.join([*words, usage])}"


def write_grid(originals: Tensor, decoded: Tensor, path: Path) -> None:
    """Write pictures above their reconstructions.

    Args:
        originals: uint8 [batch, 3, height, width].
        decoded: float [batch, 3, height, width] in [-1, 1].
        path: a PNG file.
    """
    rows = [
        np.concatenate(list(pictures.numpy().transpose(0, 2, 3, 1)), axis=1)
        for pictures in (originals, to_bytes(decoded).cpu())
    ]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
