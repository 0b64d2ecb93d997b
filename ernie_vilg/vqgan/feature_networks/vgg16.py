"""VGG16's convolutions, under torchvision's names.

Source: Simonyan and Zisserman 2014 (arXiv:1409.1556); layers and names of torchvision's `vgg16`,
written here because torchvision needs a build of its own for each torch.
"""

from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512, 512)
"""Channels of the features that `VGG16` returns."""
_CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Number of convolutions before each pooling."""
ORIGIN = (
    "torchvision's vgg16 (vgg16-397923af.pth of https://download.pytorch.org/models/, or "
    "torchvision.models.vgg16's state_dict)"
)


class VGG16(nn.Module):
    """Network from pictures to the features before each pooling."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        channels = 3
        for width, count in zip(CHANNELS, _CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self._ends.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

        Args:
            images: normalized pictures, float32 [batch, 3, height, width], at least 16 pixels a
                side.

        Returns:
            float32 [batch, channels, rows, columns] each, `CHANNELS` channels.
        """
        found = []
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in self._ends:
                found.append(images)
        return found
