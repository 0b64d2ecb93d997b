"""A plain function of the FID's Inception on a table of tensors, block by block."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = {
    "Conv2d_1a_3x3": (3, 32, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (32, 64, 3, 3),
    "Conv2d_3b_1x1": (64, 80, 1, 1),
    "Conv2d_4a_3x3": (80, 192, 3, 3),
    "Mixed_6a.branch3x3": (288, 384, 3, 3),
    "Mixed_6a.branch3x3dbl_1": (288, 64, 1, 1),
    "Mixed_6a.branch3x3dbl_2": (64, 96, 3, 3),
    "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
    "Mixed_7a.branch3x3_1": (768, 192, 1, 1),
    "Mixed_7a.branch3x3_2": (192, 320, 3, 3),
    "Mixed_7a.branch7x7x3_1": (768, 192, 1, 1),
    "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
}
"""Input channels, output channels, rows and columns of each convolution's kernel."""
for _block, _inputs, _pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
    SHAPES |= {
        f"Mixed_{_block}.branch1x1": (_inputs, 64, 1, 1),
        f"Mixed_{_block}.branch5x5_1": (_inputs, 48, 1, 1),
        f"Mixed_{_block}.branch5x5_2": (48, 64, 5, 5),
        f"Mixed_{_block}.branch3x3dbl_1": (_inputs, 64, 1, 1),
        f"Mixed_{_block}.branch3x3dbl_2": (64, 96, 3, 3),
        f"Mixed_{_block}.branch3x3dbl_3": (96, 96, 3, 3),
        f"Mixed_{_block}.branch_pool": (_inputs, _pool, 1, 1),
    }
for _block, _width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
    SHAPES |= {
        f"Mixed_{_block}.branch1x1": (768, 192, 1, 1),
        f"Mixed_{_block}.branch7x7_1": (768, _width, 1, 1),
        f"Mixed_{_block}.branch7x7_2": (_width, _width, 1, 7),
        f"Mixed_{_block}.branch7x7_3": (_width, 192, 7, 1),
        f"Mixed_{_block}.branch7x7dbl_1": (768, _width, 1, 1),
        f"Mixed_{_block}.branch7x7dbl_2": (_width, _width, 7, 1),
        f"Mixed_{_block}.branch7x7dbl_3": (_width, _width, 1, 7),
        f"Mixed_{_block}.branch7x7dbl_4": (_width, _width, 7, 1),
        f"Mixed_{_block}.branch7x7dbl_5": (_width, 192, 1, 7),
        f"Mixed_{_block}.branch_pool": (768, 192, 1, 1),
    }
for _block, _inputs in (("7b", 1280), ("7c", 2048)):
    SHAPES |= {
        f"Mixed_{_block}.branch1x1": (_inputs, 320, 1, 1),
        f"Mixed_{_block}.branch3x3_1": (_inputs, 384, 1, 1),
        f"Mixed_{_block}.branch3x3_2a": (384, 384, 1, 3),
        f"Mixed_{_block}.branch3x3_2b": (384, 384, 3, 1),
        f"Mixed_{_block}.branch3x3dbl_1": (_inputs, 448, 1, 1),
        f"Mixed_{_block}.branch3x3dbl_2": (448, 384, 3, 3),
        f"Mixed_{_block}.branch3x3dbl_3a": (384, 384, 1, 3),
        f"Mixed_{_block}.branch3x3dbl_3b": (384, 384, 3, 1),
        f"Mixed_{_block}.branch_pool": (_inputs, 192, 1, 1),
    }


def random_inception(seed: int = 0) -> dict[str, Tensor]:
    """Return tensors of a whole file, under the names of pt_inception-2015-12-05."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, (inputs, outputs, rows, columns) in SHAPES.items():
        weight = torch.randn(outputs, inputs, rows, columns, generator=generator)
        tensors[f"{name}.conv.weight"] = weight * (2 / (inputs * rows * columns)) ** 0.5
        tensors[f"{name}.bn.weight"] = 0.5 + torch.rand(outputs, generator=generator)
        tensors[f"{name}.bn.bias"] = 0.1 * torch.randn(outputs, generator=generator)
        tensors[f"{name}.bn.running_mean"] = 0.1 * torch.randn(outputs, generator=generator)
        tensors[f"{name}.bn.running_var"] = 0.5 + torch.rand(outputs, generator=generator)
    return tensors


def plain_inception(tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the pooled features of pictures in [-1, 1]."""

    def layer(name: str, values: Tensor, stride: int = 1, padding: str | int = "same") -> Tensor:
        weight, mean, variance, scale, shift = (
            tensors[f"{name}.{part}"]
            for part in ("conv.weight", "bn.running_mean", "bn.running_var", "bn.weight", "bn.bias")
        )
        values = F.conv2d(values, weight, stride=stride, padding=padding)
        values = F.batch_norm(values, mean, variance, scale, shift, eps=0.001)
        return values.clamp_min(0)

    def chain(values: Tensor, *names: str) -> Tensor:
        for name in names:
            values = layer(name, values)
        return values

    def mean_pool(values: Tensor) -> Tensor:
        ones = F.avg_pool2d(torch.ones_like(values), 3, 1, padding=1)  # share inside the picture
        return F.avg_pool2d(values, 3, 1, padding=1) / ones

    x = F.interpolate(images, size=299, mode="bilinear", align_corners=False)
    x = layer("Conv2d_1a_3x3", x, 2, 0)
    x = layer("Conv2d_2a_3x3", x, 1, 0)
    x = F.max_pool2d(layer("Conv2d_2b_3x3", x), 3, 2)
    x = layer("Conv2d_4a_3x3", layer("Conv2d_3b_1x1", x), 1, 0)
    x = F.max_pool2d(x, 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        branches = [
            chain(x, f"{b}.branch1x1"),
            chain(x, f"{b}.branch5x5_1", f"{b}.branch5x5_2"),
            chain(x, *(f"{b}.branch3x3dbl_{i}" for i in (1, 2, 3))),
            chain(mean_pool(x), f"{b}.branch_pool"),
        ]
        x = torch.cat(branches, 1)
    b = "Mixed_6a"
    double = chain(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
    branches = [layer(f"{b}.branch3x3", x, 2, 0), layer(f"{b}.branch3x3dbl_3", double, 2, 0)]
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        branches = [
            chain(x, f"{b}.branch1x1"),
            chain(x, *(f"{b}.branch7x7_{i}" for i in (1, 2, 3))),
            chain(x, *(f"{b}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
            chain(mean_pool(x), f"{b}.branch_pool"),
        ]
        x = torch.cat(branches, 1)
    b = "Mixed_7a"
    one = layer(f"{b}.branch3x3_2", chain(x, f"{b}.branch3x3_1"), 2, 0)
    long = chain(x, *(f"{b}.branch7x7x3_{i}" for i in (1, 2, 3)))
    x = torch.cat([one, layer(f"{b}.branch7x7x3_4", long, 2, 0), F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_7b", "Mixed_7c"):
        one = chain(x, f"{b}.branch3x3_1")
        double = chain(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
        pooled = mean_pool(x) if b == "Mixed_7b" else F.max_pool2d(x, 3, 1, padding=1)
        branches = [
            chain(x, f"{b}.branch1x1"),
            chain(one, f"{b}.branch3x3_2a"),
            chain(one, f"{b}.branch3x3_2b"),
            chain(double, f"{b}.branch3x3dbl_3a"),
            chain(double, f"{b}.branch3x3dbl_3b"),
            chain(pooled, f"{b}.branch_pool"),
        ]
        x = torch.cat(branches, 1)
    return x.mean(dim=(2, 3))
