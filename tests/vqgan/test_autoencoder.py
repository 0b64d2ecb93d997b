"""Pictures become codes and pictures again, locally if the settings say so."""

from dataclasses import replace

import pytest
import torch

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.vqgan.autoencoder import VQGAN

LOCAL = ImageTokenizerConfig(
    image_size=32,
    codebook_size=64,
    embedding_size=4,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_residual_blocks=1,
    patch_size=4,
    encoder_kernel_size=1,
    normalization="channel",
)
FULL_RESOLUTION = ImageTokenizerConfig(
    image_size=32,
    codebook_size=16,
    embedding_size=4,
    base_channels=32,
    channel_multipliers=(1, 1, 2, 4),
    num_residual_blocks=1,
    attention_resolutions=(4,),
)


def build(config: ImageTokenizerConfig) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(config).eval().requires_grad_(False)


def pictures(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LOCAL, id="patches of 4, halved once"),
        pytest.param(FULL_RESOLUTION, id="halved three times, with attention"),
        pytest.param(replace(LOCAL, patch_size=8, channel_multipliers=(1,)), id="patches of 8"),
        pytest.param(replace(LOCAL, normalization="none"), id="no normalisation"),
    ],
)
def test_codes_are_a_grid_of_one_per_eight_pixels(config: ImageTokenizerConfig) -> None:
    model = build(config)

    codes = model.encode(pictures(2))
    decoded = model.decode(codes)

    assert codes.shape == (2, 4, 4)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < config.codebook_size
    assert decoded.shape == (2, 3, 32, 32)
    assert decoded.dtype == torch.float32
    assert float(decoded.abs().max()) <= 1


def test_forward_decodes_the_codes_that_encode_returns() -> None:
    model = build(LOCAL)
    images = pictures(2)

    output = model(images)

    assert torch.equal(output.quantized.codes, model.encode(images))
    torch.testing.assert_close(
        output.reconstruction.clamp(-1, 1), model.decode(output.quantized.codes)
    )


def test_code_of_the_local_encoder_depends_on_its_own_pixels_only() -> None:
    model = build(LOCAL)
    images = pictures(1)
    changed = images.clone()
    changed[:, :, :8, :8] = -changed[:, :, :8, :8]

    difference = (model.encoder(images) - model.encoder(changed)).abs().amax(dim=(0, 1))

    assert difference[0, 0] > 0
    difference[0, 0] = 0
    assert float(difference.max()) == 0


def test_group_normalisation_makes_a_code_depend_on_the_whole_picture() -> None:
    model = build(replace(LOCAL, base_channels=32, normalization="group"))
    images = pictures(1)
    changed = images.clone()
    changed[:, :, :8, :8] = 1.0

    difference = (model.encoder(images) - model.encoder(changed)).abs().amax(dim=(0, 1))

    assert float(difference[3, 3]) > 0


def test_attention_reaches_every_position() -> None:
    model = build(replace(LOCAL, attention_resolutions=(4,)))
    images = pictures(1)
    changed = images.clone()
    changed[:, :, :8, :8] = 1.0

    difference = (model.encoder(images) - model.encoder(changed)).abs().amax(dim=(0, 1))

    assert bool((difference > 0).all())


def test_every_weight_gets_a_gradient() -> None:
    # DistributedDataParallel waits for each of them.
    model = build(FULL_RESOLUTION).train().requires_grad_(True)

    output = model(pictures(2))
    (output.reconstruction.sum() + sum(output.quantized.losses.values())).backward()

    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \[batch, 3, 32, 32\]"):
        build(LOCAL).encode(pictures(1, size=40))


def test_paper_like_shape_has_a_grid_of_32_and_8192_codes() -> None:
    config = ImageTokenizerConfig()  # the defaults are those of VQGAN f8

    assert (config.downsampling_factor, config.grid_size, config.codebook_size) == (8, 32, 8192)
