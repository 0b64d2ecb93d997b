"""Perceptual distances equal the formulas of their sources."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ernie_vilg.config.tokenizer_objective import PerceptualConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.vqgan.losses.perceptual import (
    LPIPS,
    GradientDistance,
    LogitDistance,
    RandomDistance,
    _directions,
    build_perceptual_distance,
)
from tests.vqgan.feature_networks.plain_networks import (
    plain_resnet50,
    plain_vgg16,
    random_linear,
    random_resnet50,
    random_vgg16,
    weights_file,
)

CPU = torch.device("cpu")


def pictures(*, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    originals, noise = torch.rand(2, 2, 3, size, size, generator=torch.manual_seed(seed)) * 2 - 1
    return (originals + 0.2 * noise).requires_grad_(), originals


def test_lpips_is_the_weighted_distance_of_unit_features(tmp_path: Path) -> None:
    vgg16, linear = random_vgg16(), random_linear()
    distance = LPIPS(
        weights_file(tmp_path / "vgg16.pth", vgg16), weights_file(tmp_path / "lin.pth", linear)
    )
    others, originals = pictures(size=32)

    found = distance(others, originals)

    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    expected = torch.zeros(2)
    for level, (one, other) in enumerate(
        zip(
            plain_vgg16(vgg16, (others - shift) / scale),
            plain_vgg16(vgg16, (originals - shift) / scale),
            strict=True,
        )
    ):
        one = one / (one.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        other = other / (other.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        per_pixel = (linear[f"lin{level}.model.1.weight"] * (one - other) ** 2).sum(1)
        expected = expected + per_pixel.flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), others)
    assert gradient.abs().max() > 0


def test_direction_of_dead_features_is_zero_with_a_finite_gradient() -> None:
    features = torch.zeros(1, 4, 1, 1, requires_grad=True)

    directions = _directions(features)
    directions.sum().backward()

    assert directions.abs().max() == 0
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_logit_distance_is_the_squared_error_of_resnet_logits(tmp_path: Path) -> None:
    tensors = random_resnet50()
    distance = LogitDistance(weights_file(tmp_path / "resnet50.pth", tensors))
    others, originals = pictures(size=256)  # larger than 224, where antialiasing acts

    found = distance(others, originals)

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    logits = []
    for images in (others, originals):
        unit = images * 0.5 + 0.5
        resized = F.interpolate(
            unit, size=224, mode="bilinear", antialias=True, align_corners=False
        )
        logits.append(plain_resnet50(tensors, (resized - mean) / deviation))
    expected = F.mse_loss(logits[0], logits[1])
    torch.testing.assert_close(found.mean(), expected, rtol=1e-4, atol=1e-7)
    assert found.shape == (2,)


def test_gradient_distance_ignores_a_shift_of_brightness_and_counts_an_edge() -> None:
    originals = torch.zeros(2, 3, 2, 2)
    others = originals.clone()
    others[0] = 0.5
    others[1, :, :, 1] = 1.0  # one edge between the two columns

    found = GradientDistance()(others, originals)

    # The difference across is 1 everywhere, the one down 0; there is no smaller scale.
    assert found.tolist() == [0.0, 1.0]


def test_gradient_distance_sees_coarse_scales() -> None:
    originals = torch.zeros(1, 3, 4, 4)
    others = originals.clone()
    others[:, :, :, 2:] = 1.0

    found = GradientDistance()(others, originals)

    # One of three differences at full size, the only one at half size.
    assert found.item() == pytest.approx((1 / 3 + 1) / 2)


def test_random_features_are_the_same_on_every_machine() -> None:
    network = RandomDistance().network
    weight = network.get_buffer("weight0")

    # The upper bits of the first numbers of PCG64(20180111), by numpy's documented stream.
    assert (weight.flatten()[:8] > 0).int().tolist() == [0, 1, 0, 0, 1, 1, 1, 1]
    assert weight.abs().unique().item() == pytest.approx((2 / 27) ** 0.5)


def test_random_distance_is_zero_for_equal_pictures_only() -> None:
    others, originals = pictures(size=16)
    distance = RandomDistance()

    assert distance(originals, originals).tolist() == [0.0, 0.0]
    found = distance(others, originals)
    assert (found > 0).all()
    found.sum().backward()
    assert others.grad is not None
    assert others.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (PerceptualConfig(features="none"), type(None)),
        (PerceptualConfig(features="random", weight=0.0), type(None)),
        (PerceptualConfig(features="random"), RandomDistance),
        (PerceptualConfig(features="gradients"), GradientDistance),
    ],
    ids=["none", "weight of 0", "random", "gradients"],
)
def test_settings_choose_the_distance(config: PerceptualConfig, kind: type) -> None:
    assert type(build_perceptual_distance(config, CPU)) is kind


def test_distance_is_built_from_the_files_of_the_settings(tmp_path: Path) -> None:
    weights, linear = tmp_path / "vgg16.pth", tmp_path / "vgg.pth"
    torch.save(random_vgg16(), weights)
    torch.save(random_linear(), linear)
    config = PerceptualConfig(
        features="lpips",
        weights=str(weights),
        weights_sha256=sha256_of_file(weights),
        linear_weights=str(linear),
        linear_weights_sha256="0" * 64,
    )

    with pytest.raises(InputError, match=r"objective\.perceptual\.linear_weights_sha256=000"):
        build_perceptual_distance(config, CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "lpips"}, r"objective\.perceptual\.weights is null .*vgg16-397923af\.pth"),
        (
            {"features": "lpips", "weights": "a", "weights_sha256": "0" * 64},
            r"objective\.perceptual\.linear_weights is null .* of the package lpips",
        ),
        (
            {"features": "resnet50", "weights": "a"},
            r"objective\.perceptual\.weights_sha256 is null",
        ),
        ({"features": "random", "weights": "a"}, "reads no such file"),
    ],
    ids=["no file", "no linear layers", "no hash", "a file without use"],
)
def test_incomplete_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PerceptualConfig(**settings)  # type: ignore[arg-type]
