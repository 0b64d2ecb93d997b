"""Plain functions of networks on a table of tensors, written from torchvision's names."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.vqgan.feature_networks.weights_file import WeightsFile

Tensors = Mapping[str, Tensor]

VGG16_CONVOLUTIONS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    17: (256, 512),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}
"""Input and output channels by index in torchvision's `features`."""


def random_vgg16(seed: int = 0) -> dict[str, Tensor]:
    """Return tensors of a whole VGG16 file: convolutions, and a part of the classifier."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"classifier.6.bias": torch.zeros(1000)}
    for index, (inputs, outputs) in VGG16_CONVOLUTIONS.items():
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        tensors[f"features.{index}.weight"] = weight * (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return tensors


def random_linear(seed: int = 1) -> dict[str, Tensor]:
    """Return tensors of LPIPS's linear layers; the trained ones are not negative either."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"lin{level}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for level, channels in enumerate((64, 128, 256, 512, 512))
    }


def plain_vgg16(tensors: Tensors, images: Tensor) -> list[Tensor]:
    """Return the five features before each pooling."""
    taken = []
    for index in range(30):
        if index in VGG16_CONVOLUTIONS:
            weight, bias = tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"]
            images = torch.relu(F.conv2d(images, weight, bias, padding=1))
            if index + 1 in (3, 8, 15, 22, 29):
                taken.append(images)
        elif index in (4, 9, 16, 23):
            images = F.max_pool2d(images, kernel_size=2, stride=2)
    return taken


def random_resnet50(seed: int = 0) -> dict[str, Tensor]:
    """Return tensors of a whole ResNet-50 file, with the counters that newer files have."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def convolution(name: str, inputs: int, outputs: int, size: int) -> None:
        weight = torch.randn(outputs, inputs, size, size, generator=generator)
        tensors[f"{name}.weight"] = weight / (inputs * size * size) ** 0.5

    def norm(name: str, channels: int) -> None:
        tensors[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=generator)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=generator)
        tensors[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=generator)
        tensors[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", 3, 64, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for index, (one, other, size) in enumerate(
                ((inputs, width, 1), (width, width, 3), (width, 4 * width, 1)), start=1
            ):
                convolution(f"{name}.conv{index}", one, other, size)
                norm(f"{name}.bn{index}", other)
            if block == 0:
                convolution(f"{name}.downsample.0", inputs, 4 * width, 1)
                norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    tensors["fc.weight"] = torch.randn(1000, 2048, generator=generator) / 2048**0.5
    tensors["fc.bias"] = torch.randn(1000, generator=generator)
    return tensors


def plain_resnet50(tensors: Tensors, images: Tensor) -> Tensor:
    """Return the logits."""

    def norm(name: str, values: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            tensors[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (values - mean) / (variance + 1e-5).sqrt() * weight + bias

    values = F.conv2d(images, tensors["conv1.weight"], stride=2, padding=3)
    values = F.max_pool2d(torch.relu(norm("bn1", values)), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = values
            values = torch.relu(
                norm(f"{name}.bn1", F.conv2d(values, tensors[f"{name}.conv1.weight"]))
            )
            middle = F.conv2d(values, tensors[f"{name}.conv2.weight"], stride=stride, padding=1)
            values = torch.relu(norm(f"{name}.bn2", middle))
            values = norm(f"{name}.bn3", F.conv2d(values, tensors[f"{name}.conv3.weight"]))
            if block == 0:
                weight = tensors[f"{name}.downsample.0.weight"]
                shortcut = norm(f"{name}.downsample.1", F.conv2d(shortcut, weight, stride=stride))
            values = torch.relu(values + shortcut)
    return values.mean(dim=(2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]


def weights_file(path: Path, tensors: Tensors) -> WeightsFile:
    """Write tensors as a .pth, and return the file with its hash."""
    torch.save(dict(tensors), path)
    sha256 = sha256_of_file(path)
    return WeightsFile(path=path, sha256=sha256, setting="some.weights", origin="the file X")
