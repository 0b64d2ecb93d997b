"""Metrics of an image tokenizer's steps, and the evaluation of its reconstructions."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ernie_vilg.data.batches.image_batches import ImageBatches
from ernie_vilg.system.progress import duration
from ernie_vilg.vqgan.autoencoder import VQGAN, AutoencoderOutput
from ernie_vilg.vqgan.losses.pixel import psnr
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes
from ernie_vilg.vqgan.quantizers.nearest import codebook_usage

GRID_COLUMNS = 16
"""Number of pictures in the grid of reconstructions."""
_EVALUATION_BATCH_SIZE = 64


class TokenizerMeter:
    """Sums over the steps since the last log line, read from the device once per line."""

    def __init__(self, codebook_size: int, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}  # by name, float64 []
        self._counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)
        self._steps = 0
        self._timed_steps = 0
        self._since = time.monotonic()

    @torch.no_grad()
    def add(self, output: AutoencoderOutput, images: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Count one step; copies nothing to the host.

        Args:
            output: output for this rank's pictures.
            images: this rank's pictures, float [batch, 3, height, width] in [-1, 1].
            terms: weighted terms of this rank's loss by name, float32 [] each.
        """
        reconstruction = output.reconstruction.float().clamp(-1, 1)
        values = {
            "loss": torch.stack(list(terms.values())).sum(),
            **terms,
            "commitment_loss": output.quantized.commitment_loss,
            "squared_error": F.mse_loss(reconstruction, images),
        }
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.double()
        codes = output.quantized.codes.flatten()
        self._counts += torch.bincount(codes, minlength=len(self._counts))
        self._steps += 1
        self._timed_steps += 1

    def restart_clock(self) -> None:
        """Exclude the time since the last log line from the rate."""
        self._since = time.monotonic()
        self._timed_steps = 0

    def read(self, global_batch_size: int) -> dict[str, float]:
        """Return the metrics since the last call, over all ranks, and reset them.

        All ranks must call.

        Args:
            global_batch_size: pictures per step over all ranks.
        """
        sums = torch.stack(list(self._sums.values()))
        dist.all_reduce(sums)
        dist.all_reduce(self._counts)
        means = sums / (self._steps * dist.get_world_size())
        metrics = dict(zip(self._sums, means.tolist(), strict=True))
        usage, perplexity = codebook_usage(self._counts)
        seconds = max(time.monotonic() - self._since, 1e-9)
        metrics |= {
            "psnr": psnr(metrics.pop("squared_error")),
            "codebook_usage": usage,
            "perplexity": perplexity,
            "images_per_second": self._timed_steps * global_batch_size / seconds,
            "seconds_per_step": seconds / max(self._timed_steps, 1),
        }
        self._sums.clear()
        self._counts.zero_()
        self._steps = 0
        self.restart_clock()
        return metrics


def log_line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """Return the log line of a step's metrics."""
    left = duration((steps - step) * metrics["seconds_per_step"])
    return (
        f"step {step}/{steps}  loss {metrics['loss']:.4f}  PSNR {metrics['psnr']:.2f} dB  "
        f"commitment {metrics['commitment_loss']:.5f}  "
        f"codes used {100 * metrics['codebook_usage']:.0f}%  "
        f"perplexity {metrics['perplexity']:.1f}  rate {metrics['learning_rate']:.2e}  "
        f"{metrics['images_per_second']:.0f} images/s  {left} left"
    )


def evaluate(
    model: VQGAN, batches: ImageBatches, num_images: int, grid_path: Path
) -> dict[str, float]:
    """Measure the tokenizer in float32, as it will be used.

    Args:
        model: the trained tokenizer.
        batches: batches of the training data; the first pictures in their order are used.
        num_images: pictures to measure on.
        grid_path: PNG file for a grid of some of them, originals above reconstructions.

    Returns:
        "psnr" in dB, "codebook_usage" from 0 to 1, "perplexity", "evaluation_images".
    """
    device = model.quantizer.codebook.device
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    squared_errors: list[float] = []
    for first in range(0, num_images, _EVALUATION_BATCH_SIZE):
        count = min(_EVALUATION_BATCH_SIZE, num_images - first)
        originals = batches.for_evaluation(first, count)
        images = from_bytes(originals.to(device))
        codes = model.encode(images)
        decoded = model.decode(codes)
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        squared_errors += (decoded - images).square().mean(dim=(1, 2, 3)).tolist()
        if first == 0:
            write_grid(originals, decoded, grid_path)
    usage, perplexity = codebook_usage(counts)
    return {
        "psnr": psnr(float(np.mean(squared_errors))),
        "codebook_usage": usage,
        "perplexity": perplexity,
        "evaluation_images": num_images,
    }


def write_grid(originals: Tensor, decoded: Tensor, path: Path) -> None:
    """Write pictures above their reconstructions.

    Args:
        originals: uint8 [batch, 3, height, width].
        decoded: float [batch, 3, height, width] in [-1, 1].
        path: a PNG file.
    """
    rows = [
        np.concatenate(list(pictures[:GRID_COLUMNS].numpy().transpose(0, 2, 3, 1)), axis=1)
        for pictures in (originals, to_bytes(decoded).cpu())
    ]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
