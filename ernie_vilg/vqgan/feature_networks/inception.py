"""TensorFlow's Inception of 2015, whose pooled features are those of the FID.

Its layers differ from torchvision's in the pooling of some blocks: averages leave the padding out,
and the last block takes maxima. A further network of the same family is another set of poolings.

Source: Szegedy et al. 2015 (arXiv:1512.00567); layers, names, weights and preprocessing of
pytorch-fid's `pt_inception-2015-12-05`, ported from TensorFlow's graph. It resizes as
torch does, not as TensorFlow did, which changes an FID in the second decimal place.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ORIGIN = (
    "pt_inception-2015-12-05-6726825d.pth of the releases of "
    "https://github.com/mseitzer/pytorch-fid"
)
_INPUT_SIZE = 299
_EPSILON = 1e-3
_FEATURES = 2048
_CLASSES = 1008

Pooling = Literal["average", "maximum"]


class _Layer(NamedTuple):
    """One convolution of a block."""

    name: str
    source: str
    """Layer that it reads; "" for the block's input."""
    width: int
    kernel: tuple[int, int]
    stride: int = 1
    is_padded: bool = True


class Inception(nn.Module):
    """Network from pictures to feature vectors."""

    num_features = _FEATURES
    """Length of a picture's feature vector."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), 2, is_padded=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), 1, is_padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3), 1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1), 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), 1, is_padded=False)
        self.Mixed_5b = _wide_block(192, 32)
        self.Mixed_5c = _wide_block(256, 64)
        self.Mixed_5d = _wide_block(288, 64)
        self.Mixed_6a = _first_reduction(288)
        self.Mixed_6b = _long_block(128)
        self.Mixed_6c = _long_block(160)
        self.Mixed_6d = _long_block(160)
        self.Mixed_6e = _long_block(192)
        self.Mixed_7a = _second_reduction(768)
        self.Mixed_7b = _forked_block(1280, "average")
        self.Mixed_7c = _forked_block(2048, "maximum")
        self.fc = nn.Linear(self.num_features, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features, float32 [batch, 2048].

        Args:
            images: pictures of any size, float32 [batch, 3, height, width] in [-1, 1].
        """
        features = F.interpolate(images, (_INPUT_SIZE, _INPUT_SIZE), mode="bilinear")
        features = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(features)))
        features = F.max_pool2d(features, 3, 2)
        features = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(features)), 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                features = block(features)
        return features.mean(dim=(2, 3))


class _Convolution(nn.Module):
    """Convolution, batch normalization and rectifier."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        kernel: tuple[int, int],
        stride: int,
        *,
        is_padded: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if is_padded else (0, 0)
        self.conv = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=_EPSILON)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(inputs)))


class _Block(nn.Module):
    """Convolutions side by side and after one another, and a pooling, joined along channels."""

    def __init__(
        self,
        in_channels: int,
        layers: tuple[_Layer, ...],
        *,
        pooling: Pooling,
        pool_width: int | None,
    ) -> None:
        """Build the block.

        Args:
            in_channels: channels of the input.
            layers: its convolutions; those that no other reads are its output, in their order.
            pooling: pooling of the last branch.
            pool_width: channels of the convolution after the pooling, which then keeps the
                resolution; None halves the resolution, without a convolution.
        """
        super().__init__()
        widths = {"": in_channels}
        for layer in layers:
            convolution = _Convolution(
                widths[layer.source],
                layer.width,
                layer.kernel,
                layer.stride,
                is_padded=layer.is_padded,
            )
            self.add_module(layer.name, convolution)
            widths[layer.name] = layer.width
        if pool_width is not None:
            self.branch_pool = _Convolution(in_channels, pool_width, (1, 1), 1)
        read = {layer.source for layer in layers}
        self._layers = layers
        self._outputs = [layer.name for layer in layers if layer.name not in read]
        self._pooling = pooling
        self._is_reduction = pool_width is None

    def forward(self, inputs: Tensor) -> Tensor:
        found = {"": inputs}
        for layer in self._layers:
            found[layer.name] = self.get_submodule(layer.name)(found[layer.source])
        return torch.cat([*(found[name] for name in self._outputs), self._pooled(inputs)], dim=1)

    def _pooled(self, inputs: Tensor) -> Tensor:
        if self._is_reduction:
            return F.max_pool2d(inputs, 3, 2)
        if self._pooling == "maximum":
            pooled = F.max_pool2d(inputs, 3, 1, padding=1)
        else:
            pooled = F.avg_pool2d(inputs, 3, 1, padding=1, count_include_pad=False)
        result: Tensor = self.branch_pool(pooled)
        return result


def _wide_block(in_channels: int, pool_width: int) -> _Block:
    layers = (
        _Layer("branch1x1", "", 64, (1, 1)),
        _Layer("branch5x5_1", "", 48, (1, 1)),
        _Layer("branch5x5_2", "branch5x5_1", 64, (5, 5)),
        _Layer("branch3x3dbl_1", "", 64, (1, 1)),
        _Layer("branch3x3dbl_2", "branch3x3dbl_1", 96, (3, 3)),
        _Layer("branch3x3dbl_3", "branch3x3dbl_2", 96, (3, 3)),
    )
    return _Block(in_channels, layers, pooling="average", pool_width=pool_width)


def _first_reduction(in_channels: int) -> _Block:
    layers = (
        _Layer("branch3x3", "", 384, (3, 3), 2, is_padded=False),
        _Layer("branch3x3dbl_1", "", 64, (1, 1)),
        _Layer("branch3x3dbl_2", "branch3x3dbl_1", 96, (3, 3)),
        _Layer("branch3x3dbl_3", "branch3x3dbl_2", 96, (3, 3), 2, is_padded=False),
    )
    return _Block(in_channels, layers, pooling="maximum", pool_width=None)


def _long_block(width: int) -> _Block:
    layers = (
        _Layer("branch1x1", "", 192, (1, 1)),
        _Layer("branch7x7_1", "", width, (1, 1)),
        _Layer("branch7x7_2", "branch7x7_1", width, (1, 7)),
        _Layer("branch7x7_3", "branch7x7_2", 192, (7, 1)),
        _Layer("branch7x7dbl_1", "", width, (1, 1)),
        _Layer("branch7x7dbl_2", "branch7x7dbl_1", width, (7, 1)),
        _Layer("branch7x7dbl_3", "branch7x7dbl_2", width, (1, 7)),
        _Layer("branch7x7dbl_4", "branch7x7dbl_3", width, (7, 1)),
        _Layer("branch7x7dbl_5", "branch7x7dbl_4", 192, (1, 7)),
    )
    return _Block(768, layers, pooling="average", pool_width=192)


def _second_reduction(in_channels: int) -> _Block:
    layers = (
        _Layer("branch3x3_1", "", 192, (1, 1)),
        _Layer("branch3x3_2", "branch3x3_1", 320, (3, 3), 2, is_padded=False),
        _Layer("branch7x7x3_1", "", 192, (1, 1)),
        _Layer("branch7x7x3_2", "branch7x7x3_1", 192, (1, 7)),
        _Layer("branch7x7x3_3", "branch7x7x3_2", 192, (7, 1)),
        _Layer("branch7x7x3_4", "branch7x7x3_3", 192, (3, 3), 2, is_padded=False),
    )
    return _Block(in_channels, layers, pooling="maximum", pool_width=None)


def _forked_block(in_channels: int, pooling: Pooling) -> _Block:
    layers = (
        _Layer("branch1x1", "", 320, (1, 1)),
        _Layer("branch3x3_1", "", 384, (1, 1)),
        _Layer("branch3x3_2a", "branch3x3_1", 384, (1, 3)),
        _Layer("branch3x3_2b", "branch3x3_1", 384, (3, 1)),
        _Layer("branch3x3dbl_1", "", 448, (1, 1)),
        _Layer("branch3x3dbl_2", "branch3x3dbl_1", 384, (3, 3)),
        _Layer("branch3x3dbl_3a", "branch3x3dbl_2", 384, (1, 3)),
        _Layer("branch3x3dbl_3b", "branch3x3dbl_2", 384, (3, 1)),
    )
    return _Block(in_channels, layers, pooling=pooling, pool_width=192)
