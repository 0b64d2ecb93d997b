"""The discriminator judges patches of one picture at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_vilg.vqgan.discriminator import PatchDiscriminator, logits_of


def discriminator(*, num_layers: int = 3, base_channels: int = 8) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(base_channels, num_layers)


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.manual_seed(1)) * 2 - 1


def test_layers_are_those_of_vqgan() -> None:
    network = discriminator(base_channels=64)
    names = [name for name in network.state_dict() if name.endswith("weight")]
    weights = [network.state_dict()[name] for name in names]

    # taming-transformers, n_layers=3, ndf=64: convolutions and the scales of its normalization.
    assert [tuple(weight.shape) for weight in weights] == [
        (64, 3, 4, 4),
        (128, 64, 4, 4),
        (128,),
        (256, 128, 4, 4),
        (256,),
        (512, 256, 4, 4),
        (512,),
        (1, 512, 4, 4),
    ]
    assert network(images(1, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(("num_layers", "side"), [(3, 70), (2, 34)])
def test_gradient_of_a_logit_reaches_its_patch(num_layers: int, side: int) -> None:
    network = discriminator(num_layers=num_layers)
    for index, layer in enumerate(network):
        if isinstance(layer, torch.nn.GroupNorm):  # it alone sees the whole picture
            network[index] = torch.nn.Identity()
    pictures = images(1, 256).requires_grad_()
    logits = network(pictures)

    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()

    assert pictures.grad is not None
    rows, columns = pictures.grad[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    assert [int(found.max() - found.min()) + 1 for found in (rows, columns)] == [side, side]


def test_forward_equals_a_plain_one() -> None:
    network, values = discriminator(num_layers=1), images()
    weights = list(network.parameters())

    values = F.leaky_relu(F.conv2d(images(), weights[0], weights[1], 2, 1), 0.2)
    values = F.conv2d(values, weights[2], None, 1, 1)
    groups = values.view(2, 16, -1)  # 16 channels, each a group of its own
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, correction=0)
    values = ((groups - mean) / (variance + 1e-5).sqrt()).view_as(values)
    values = F.leaky_relu(values * weights[3].view(-1, 1, 1) + weights[4].view(-1, 1, 1), 0.2)
    expected = F.conv2d(values, weights[5], weights[6], 1, 1)

    torch.testing.assert_close(network(images()), expected, rtol=1e-5, atol=1e-6)


def test_logits_of_a_picture_do_not_depend_on_its_batch() -> None:
    network, pictures = discriminator(), images(4)

    real, fake = logits_of(network, pictures[:2], pictures[2:])

    torch.testing.assert_close(real, network(pictures[:2]))
    torch.testing.assert_close(fake[1:], network(pictures[3:]))


def test_frozen_discriminator_passes_gradients_to_pictures_alone() -> None:
    network, pictures = discriminator(), images().requires_grad_()

    with network.frozen():
        logits = network(pictures)
    logits.sum().backward()

    assert pictures.grad is not None
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
