"""Figures of an image tokenizer's reconstructions, summed over batches and ranks.

All figures compare bytes, as a file of the reconstruction holds them. Training's evaluation and
launch/evaluate_image_tokenizer.py share them.

Source: LPIPS, Zhang et al. 2018 (arXiv:1801.03924); rFID, Heusel et al. 2017 (arXiv:1706.08500).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ernie_vilg.vqgan.feature_networks.inception import Inception
from ernie_vilg.vqgan.losses.perceptual import LPIPS
from ernie_vilg.vqgan.losses.pixel import psnr
from ernie_vilg.vqgan.metrics.frechet import FeatureMoments, frechet_distance
from ernie_vilg.vqgan.metrics.similarity import SMALLEST_SIDE, gradient_energy, ssim
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes
from ernie_vilg.vqgan.quantizers.usage import codebook_figures

LARGEST_PSNR = 99.0
"""PSNR of equal pictures in files, dB: JSON knows no infinity."""


class ReconstructionFigures:
    """Sums over pictures; the memory does not grow with their number."""

    def __init__(
        self,
        codebook_size: int,
        device: torch.device,
        *,
        lpips: LPIPS | None = None,
        inception: Inception | None = None,
    ) -> None:
        """Start at no picture.

        Args:
            codebook_size: number of codes.
            device: device of the pictures.
            lpips: network of the figure "lpips", which is left out without it.
            inception: network of the figure "rfid", which is left out without it.
        """
        self._sums: dict[str, Tensor] = {}  # over pictures, float64 []
        self._counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)
        self._pictures = torch.zeros((), dtype=torch.int64, device=device)
        self._lpips = lpips
        self._inception = inception
        self._moments = [
            FeatureMoments(inception.num_features, device)
            for _ in ("originals", "reconstructions")
            if inception is not None
        ]

    @torch.no_grad()
    def add(self, originals: Tensor, reconstructions: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Count some pictures.

        Args:
            originals: uint8 [batch, 3, height, width].
            reconstructions: float [batch, 3, height, width] in [-1, 1]; others are clamped.
            codes: int64 [batch, grid, grid].

        Returns:
            values of each picture by name, float [batch]: "squared_error", the mean over its
            pixels in [-1, 1]; "ssim" and "lpips" where they are measured.
        """
        images, others = from_bytes(originals), from_bytes(to_bytes(reconstructions))
        per_picture = {
            "squared_error": (images - others).double().square().mean(dim=(1, 2, 3)),
            "original_energy": gradient_energy(images),
            "energy": gradient_energy(others),
        }
        if min(images.shape[2:]) >= SMALLEST_SIDE:
            per_picture["ssim"] = ssim(others, images)
        if self._lpips is not None:
            per_picture["lpips"] = self._lpips(others, images)
        for name, values in per_picture.items():
            self._sums[name] = self._sums.get(name, 0) + values.double().sum()
        self._counts += torch.bincount(codes.flatten(), minlength=len(self._counts))
        self._pictures += len(images)
        if self._inception is not None:
            for moments, pictures in zip(self._moments, (images, others), strict=True):
                moments.add(self._inception(pictures))
        return {name: value for name, value in per_picture.items() if "energy" not in name}

    def add_up(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Replace the sums by those over all ranks, each of which has counted a picture.

        Args:
            all_reduce: function that replaces a tensor by its sum over ranks.
        """
        for sums in (*self._sums.values(), self._counts, self._pictures):
            all_reduce(sums)
        for moments in self._moments:
            moments.add_up(all_reduce)

    def code_counts(self) -> Tensor:
        """Return the uses of each code, int64 [codebook]."""
        return self._counts.cpu()

    def figures(self) -> dict[str, float]:
        """Return the figures over all pictures; at least one must have been added.

        Returns:
            "psnr" of the mean squared error over all pictures, dB, at most `LARGEST_PSNR`;
            "gradient_energy", the reconstructions' divided by the originals', 1 for equally sharp
            ones; "codebook_usage" from 0 to 1; "perplexity"; "dead_codes", codes that no picture
            uses; "pictures". "ssim" for pictures of at least 11 pixels a side; "lpips" and "rfid"
            with their networks, the latter for at least two pictures.
        """
        count = int(self._pictures)
        means = {name: float(value) / count for name, value in self._sums.items()}
        figures: dict[str, float] = {
            "psnr": min(psnr(means["squared_error"]), LARGEST_PSNR),
            "gradient_energy": means["energy"] / max(means["original_energy"], 1e-12),
            **codebook_figures(self._counts),
            "pictures": count,
        }
        figures |= {name: means[name] for name in ("ssim", "lpips") if name in means}
        if self._moments and count > 1:
            originals, others = (moments.mean_and_covariance() for moments in self._moments)
            figures["rfid"] = frechet_distance(originals, others)
        return figures
