"""Distances of pictures that agree better with the eye than those of pixels.

Two of them need trained networks, from files: LPIPS on VGG16, and the logits of ResNet-50. The
other two need none: gradients of pixels at several scales, which keep edges sharp, and fixed random
features, which also keep textures.

Source: LPIPS 0.1 (Zhang et al. 2018, arXiv:1801.03924); logits of ResNet-50, MaskBit (Weber et al.
2024, arXiv:2409.16211); differences of gradients, Mathieu et al. 2015 (arXiv:1511.05440), here at
several scales.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.config.tokenizer_objective import PerceptualConfig
from ernie_vilg.vqgan.feature_networks import resnet50, vgg16
from ernie_vilg.vqgan.feature_networks.random_features import RandomFeatures
from ernie_vilg.vqgan.feature_networks.resnet50 import ResNet50
from ernie_vilg.vqgan.feature_networks.vgg16 import VGG16
from ernie_vilg.vqgan.feature_networks.weights_file import WeightsFile

LINEAR_ORIGIN = (
    "lpips/weights/v0.1/vgg.pth of the package lpips (pip download lpips --no-deps; a wheel is a "
    "zip file)"
)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_SMALLEST_LENGTH = 1e-10
_GRADIENT_SCALES = 4


class PerceptualDistance(nn.Module, ABC):
    """Distance of features, one number per picture; frozen."""

    @abstractmethod
    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """Return the distance of each picture to its original, float32 [batch].

        Args:
            pictures: float32 [batch, 3, height, width], about in [-1, 1]; get a gradient.
            originals: as many in [-1, 1]; get none.
        """


class LPIPS(PerceptualDistance):
    """Distance of VGG16's features, weighted per channel to agree with people's judgements."""

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: WeightsFile, linear_weights: WeightsFile) -> None:
        """Read both files.

        Raises:
            InputError: a file is missing, altered or of another network.
        """
        super().__init__()
        self.network = VGG16()
        weights.load_into(self.network)
        self.linear = _LinearLayers()
        linear_weights.load_into(self.linear)
        self.register_buffer("shift", _per_channel(_SHIFT))
        self.register_buffer("scale", _per_channel(_SCALE))

    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """Return the distance of each picture to its original, float32 [batch]."""
        with torch.no_grad():
            targets = self.network(self._scaled(originals))
        found = self.network(self._scaled(pictures))
        # Products and sums, not a convolution, which autocast would compute in bfloat16.
        distances = [
            ((_directions(one) - _directions(other)).square() * weight).sum(dim=1).mean(dim=(1, 2))
            for one, other, weight in zip(found, targets, self.linear.weights(), strict=True)
        ]
        return torch.stack(distances).sum(dim=0)

    def _scaled(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


class _LinearLayers(nn.Module):
    """LPIPS's weights per channel, under the names of its package."""

    def __init__(self) -> None:
        super().__init__()
        for level, channels in enumerate(vgg16.CHANNELS):
            # The first layer of each pair drops features in training.
            convolution = nn.Conv2d(channels, 1, 1, bias=False)
            layers = nn.ModuleDict({"model": nn.ModuleDict({"1": convolution})})
            self.add_module(f"lin{level}", layers)

    def weights(self) -> list[Tensor]:
        """Return the weights of each level, float32 [1, channels, 1, 1]."""
        return [weight.float() for weight in self.parameters()]


class LogitDistance(PerceptualDistance):
    """Squared distance of ResNet-50's logits."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: WeightsFile) -> None:
        """Read the file.

        Raises:
            InputError: it is missing, altered or of another network.
        """
        super().__init__()
        self.network = ResNet50()
        weights.load_into(self.network)
        self.register_buffer("mean", _per_channel(resnet50.MEAN))
        self.register_buffer("deviation", _per_channel(resnet50.DEVIATION))

    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """Return the distance of each picture to its original, float32 [batch]."""
        with torch.no_grad():
            targets = self._logits(originals)
        return (self._logits(pictures) - targets).float().square().mean(dim=1)

    def _logits(self, images: Tensor) -> Tensor:
        size = (resnet50.INPUT_SIZE, resnet50.INPUT_SIZE)
        resized = F.interpolate((images + 1) / 2, size, mode="bilinear", antialias=True)
        logits: Tensor = self.network((resized - self.mean) / self.deviation)
        return logits


class GradientDistance(PerceptualDistance):
    """Absolute distance of the differences of neighbouring pixels, mean over several scales."""

    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """Return the distance of each picture to its original, float32 [batch]."""
        error, distances = (pictures - originals).float(), []
        for _ in range(_GRADIENT_SCALES):
            across = error.diff(dim=3).abs().mean(dim=(1, 2, 3))
            down = error.diff(dim=2).abs().mean(dim=(1, 2, 3))
            distances.append(across + down)
            if min(error.shape[2:]) < 4:  # the next scale would have no neighbours
                break
            error = F.avg_pool2d(error, 2)
        return torch.stack(distances).mean(dim=0)


class RandomDistance(PerceptualDistance):
    """Absolute distance of fixed random features, mean over their levels."""

    def __init__(self) -> None:
        super().__init__()
        self.network = RandomFeatures()

    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """Return the distance of each picture to its original, float32 [batch]."""
        with torch.no_grad():
            targets = self.network(originals)
        distances = [
            (one.float() - other.float()).abs().mean(dim=(1, 2, 3))
            for one, other in zip(self.network(pictures), targets, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)


def build_perceptual_distance(
    config: PerceptualConfig, device: torch.device
) -> PerceptualDistance | None:
    """Build the distance that the settings name; None where it has no part in the loss.

    Args:
        config: settings of the distance.
        device: its device.

    Raises:
        InputError: a file of weights is missing, altered or of another network.
    """
    if config.features == "none" or not config.weight:
        return None
    distance: PerceptualDistance
    if config.features == "gradients":
        distance = GradientDistance()
    elif config.features == "random":
        distance = RandomDistance()
    elif config.features == "resnet50":
        weights = _file(config.weights, config.weights_sha256, "weights", resnet50.ORIGIN)
        distance = LogitDistance(weights)
    else:
        weights = _file(config.weights, config.weights_sha256, "weights", vgg16.ORIGIN)
        path, sha256 = config.linear_weights, config.linear_weights_sha256
        distance = LPIPS(weights, _file(path, sha256, "linear_weights", LINEAR_ORIGIN))
    return distance.to(device)


def _file(path: str | None, sha256: str | None, setting: str, origin: str) -> WeightsFile:
    assert path is not None, setting  # the settings check it
    assert sha256 is not None, setting
    name = f"objective.perceptual.{setting}"
    return WeightsFile(path=Path(path), sha256=sha256, setting=name, origin=origin)


def _directions(features: Tensor) -> Tensor:
    """Return each position's features as a vector of length 1; a vector of zeros stays."""
    # The small number under the root keeps the gradient of a vector of zeros finite.
    square = features.float().square().sum(dim=1, keepdim=True) + _SMALLEST_LENGTH**2
    return features.float() / (square.sqrt() + _SMALLEST_LENGTH)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)
