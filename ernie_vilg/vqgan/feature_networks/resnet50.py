"""ResNet-50, a classifier of ImageNet's 1,000 classes, under torchvision's names.

Source: He et al. 2015 (arXiv:1512.03385); layers and names of torchvision's `resnet50`, which
halves the resolution in the 3x3 convolution of a block.
"""

from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels in [0, 1], by which torchvision normalizes."""
DEVIATION = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's pixels in [0, 1]."""
INPUT_SIZE = 224
"""Pixels per side of the pictures that it was trained on."""
ORIGIN = (
    "torchvision's resnet50, version IMAGENET1K_V1 (resnet50-0676ba61.pth of "
    "https://download.pytorch.org/models/)"
)
_BLOCKS = (3, 4, 6, 3)
_EXPANSION = 4
_CLASSES = 1000


class ResNet50(nn.Module):
    """Network from pictures to logits of 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, stages = 64, []
        for level, count in enumerate(_BLOCKS):
            width, blocks = 64 << level, []
            for index in range(count):
                stride = 2 if level > 0 and index == 0 else 1
                blocks.append(_Bottleneck(channels, width, stride))
                channels = width * _EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [batch, 1000].

        Args:
            images: normalized pictures, float32 [batch, 3, height, width].
        """
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits


class _Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 with a shortcut around them."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(inputs)))
        features = self.relu(self.bn2(self.conv2(features)))
        output: Tensor = self.relu(self.bn3(self.conv3(features)) + self.downsample(inputs))
        return output
