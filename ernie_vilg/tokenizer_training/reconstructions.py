"""Evaluates the tokenizer while it trains: figures of held-out pictures, and a grid of some.

The tokenizer is measured as it will be used: in float32, with the average of the weights where the
run keeps one. Every rank measures a part of the pictures.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.parallel.layout.collectives import (
    LEADER,
    broadcast_from_leader,
    gather_everywhere,
)
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.tokenizer_training.engine import TokenizerEngine
from ernie_vilg.tokenizer_training.export import read_figures, refresh_card
from ernie_vilg.tokenizer_training.pictures import EvaluationPictures
from ernie_vilg.training.callbacks import Observation, StepBoundary
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.losses.pixel import psnr
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes
from ernie_vilg.vqgan.quantizers.usage import codebook_usage

GRID_COLUMNS = 16
"""Number of pictures in the grid of reconstructions."""
_BATCH_SIZE = 64

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Measured:
    """Figures of some pictures, in their order."""

    squared_errors: list[float] = field(default_factory=list)
    """Mean squared error of each picture, pixels in [-1, 1]."""
    code_counts: list[int] = field(default_factory=list)
    """Uses of each code."""


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """The callback that evaluates the tokenizer."""

    pictures: EvaluationPictures
    """Pictures to measure on."""
    every: int
    """Interval in steps; 0: never."""
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
        of_ranks = gather_everywhere(self._measure(tokenizer, groups))
        if groups.rank != LEADER:
            return None
        figures = _figures(of_ranks)
        grid = RunFolder(run_dir).reconstructions(step)
        self._write_grid(tokenizer, groups.device, grid)
        write_json(
            RunFolder(run_dir).tokenizer_figures,
            {
                "step": step,
                "pictures": self.pictures.count,
                "held_out": self.pictures.is_held_out,
                **figures,
                "code_counts": _sum_of_counts(of_ranks),
            },
        )
        refresh_card(run_dir, step)
        logger.info("step %d: reconstructions of %s", step, self._caption(figures))
        prefix = "held_out" if self.pictures.is_held_out else "trained_on"
        metrics = {f"{prefix}_{name}": value for name, value in figures.items()}
        return Observation(
            metrics=metrics,
            pictures={"reconstructions": grid},
            captions={"reconstructions": self._caption(figures)},
        )

    @torch.no_grad()
    def _measure(self, tokenizer: VQGAN, groups: Groups) -> _Measured:
        """Return the figures of this rank's part of the pictures."""
        count = self.pictures.count
        first, end = (
            count * share // groups.data_size for share in (groups.data_rank, groups.data_rank + 1)
        )
        counts = torch.zeros(tokenizer.config.codebook_size, dtype=torch.int64)
        measured = _Measured()
        for start in range(first, end, _BATCH_SIZE):
            originals = self.pictures.at(start, min(_BATCH_SIZE, end - start)).to(groups.device)
            images = from_bytes(originals)
            codes = tokenizer.encode(images)
            errors = (tokenizer.decode(codes) - images).square().mean(dim=(1, 2, 3))
            measured.squared_errors += errors.tolist()
            counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        measured.code_counts = counts.tolist()
        return measured

    def _write_grid(self, tokenizer: VQGAN, device: torch.device, path: Path) -> None:
        originals = self.pictures.at(0, min(GRID_COLUMNS, self.pictures.count))
        decoded = tokenizer.decode(tokenizer.encode(from_bytes(originals.to(device))))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grid(originals, decoded, path)

    def _caption(self, figures: Mapping[str, float]) -> str:
        kind = "held-out pictures" if self.pictures.is_held_out else "pictures that are trained on"
        return f"{self.pictures.count} {kind}: {figures['psnr']:.2f} dB"


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


def _figures(of_ranks: Sequence[_Measured]) -> dict[str, float]:
    """Return the figures of all pictures by name."""
    errors = [error for measured in of_ranks for error in measured.squared_errors]
    usage, perplexity = codebook_usage(torch.tensor(_sum_of_counts(of_ranks)))
    return {
        "psnr": psnr(float(np.mean(errors))),
        "codebook_usage": usage,
        "perplexity": perplexity,
    }


def _sum_of_counts(of_ranks: Sequence[_Measured]) -> list[Any]:
    counts: list[Any] = np.sum([measured.code_counts for measured in of_ranks], axis=0).tolist()
    return counts
