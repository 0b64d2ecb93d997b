"""Figures over a stream of batches are those of all pictures at once."""

import math

import pytest
import torch
from torch import Tensor

from ernie_vilg.evaluation.reconstruction_figures import ReconstructionFigures
from ernie_vilg.vqgan.metrics.similarity import ssim
from ernie_vilg.vqgan.pixels import from_bytes

CPU = torch.device("cpu")


def batch(count: int = 4, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    originals = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    noisy = originals.int() + torch.randint(-20, 21, originals.shape)
    others = from_bytes(noisy.clamp(0, 255).to(torch.uint8))
    return originals, others, torch.randint(0, 6, (count, 2, 2))


def test_figures_are_those_of_their_definitions() -> None:
    originals, others, codes = batch()
    sums = ReconstructionFigures(8, CPU)

    of_pictures = sums.add(originals, others, codes)
    figures = sums.figures()

    images = from_bytes(originals)
    error = (images - others).square().mean().item()
    errors = of_pictures["squared_error"]
    assert errors.mean().item() == pytest.approx(error)
    assert torch.equal(of_pictures["ssim"], ssim(others, images))
    assert figures["psnr"] == pytest.approx(10 * math.log10(4 / error))
    assert figures["ssim"] == pytest.approx(ssim(others, images).mean().item())
    energy = [
        (pictures.diff(dim=2) ** 2).sum().item() + (pictures.diff(dim=3) ** 2).sum().item()
        for pictures in (others, images)
    ]
    assert figures["gradient_energy"] == pytest.approx(energy[0] / energy[1], rel=1e-5)
    used = len(set(codes.flatten().tolist()))
    assert figures["codebook_usage"] == used / 8
    assert figures["dead_codes"] == 8 - used
    assert figures["pictures"] == 4
    assert sums.code_counts().sum() == 16
    assert "lpips" not in figures
    assert "rfid" not in figures


def test_batches_and_ranks_add_up() -> None:
    originals, others, codes = batch()
    whole, ranks = ReconstructionFigures(8, CPU), [ReconstructionFigures(8, CPU) for _ in range(2)]
    whole.add(originals, others, codes)
    for part in (slice(0, 1), slice(1, 2)):
        ranks[0].add(originals[part], others[part], codes[part])
    ranks[1].add(originals[2:], others[2:], codes[2:])

    sent: list[Tensor] = []
    ranks[1].add_up(lambda tensor: sent.append(tensor.clone()))
    received = iter(sent)
    ranks[0].add_up(lambda tensor: tensor.add_(next(received)))

    assert ranks[0].figures() == pytest.approx(whole.figures())


def test_bytes_are_compared() -> None:
    originals, _, codes = batch(1)
    sums = ReconstructionFigures(8, CPU)

    # A third of a byte's step beside the original is the original.
    sums.add(originals, from_bytes(originals) + 0.3 / 127.5, codes)

    assert sums.figures()["psnr"] == 99.0


def test_tiny_pictures_have_no_structural_similarity() -> None:
    sums = ReconstructionFigures(8, CPU)
    sums.add(*batch(size=10))

    assert "ssim" not in sums.figures()


class _FirstPixels(torch.nn.Module):
    """Features of a picture: three times its first pixel."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :1].expand(-1, 3)


class _MeanError(torch.nn.Module):
    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        return (pictures - originals).abs().mean(dim=(1, 2, 3))


def test_networks_add_their_figures() -> None:
    originals = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    originals[1] = 255
    reconstructions = torch.ones(2, 3, 2, 2)
    lpips, inception = _MeanError(), _FirstPixels()
    sums = ReconstructionFigures(8, CPU, lpips=lpips, inception=inception)  # type: ignore[arg-type]

    sums.add(originals, reconstructions, torch.zeros(2, 1, 1, dtype=torch.int64))
    figures = sums.figures()

    # Features of originals: all -1, then all 1, mean 0, variances 2; of reconstructions: 1, 0.
    assert figures["lpips"] == 1.0
    assert figures["rfid"] == pytest.approx(3 * (1 + 2))
