"""Large pictures are drawn in tiles: exactly by a local decoder, without seams by others."""

from dataclasses import replace

import pytest
import torch

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.tiling import (
    Tiling,
    decode_in_tiles,
    decoder_radius,
    starts,
    tiling_of,
)

LOCAL = ImageTokenizerConfig(
    image_size=32,
    codebook_size=16,
    embedding_size=4,
    base_channels=4,
    channel_multipliers=(1, 1),
    num_residual_blocks=0,
    patch_size=2,
    normalization="channel",
)


def build(config: ImageTokenizerConfig) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(config).eval().requires_grad_(False)


def grid(config: ImageTokenizerConfig, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.codebook_size, (2, rows, columns), generator=generator)


@pytest.mark.parametrize("sides", [(8, 61), (70, 9), (45, 50)])
def test_local_decoder_draws_tiles_as_it_draws_the_whole(sides: tuple[int, int]) -> None:
    model = build(LOCAL)
    codes = grid(LOCAL, *sides)

    whole = model.decoder(model.quantizer.lookup(codes)).clamp(-1, 1)

    torch.testing.assert_close(model.decode(codes), whole, rtol=1e-5, atol=1e-5)


def test_no_code_beyond_the_radius_changes_a_pixel_and_some_code_at_it_does() -> None:
    config = replace(LOCAL, normalization="none")
    model = build(config)
    radius = decoder_radius(config)
    assert (
        radius == 9
    )  # 1 + 2 convolutions and that after doubling are 4 pixels, 2 codes; 2 + 4 + 1
    vectors = torch.zeros(1, 4, 1, 41)
    changed = vectors.clone()
    changed[..., 20] = 1.0

    difference = (model.decoder(vectors) - model.decoder(changed)).abs().amax(dim=(0, 1, 2))

    reached = difference.view(41, -1).amax(dim=1).nonzero().flatten()
    assert 20 - int(reached[0]) <= radius
    assert 20 - int(reached[0]) >= radius - 1


def test_no_tile_is_larger_than_the_training_s_pictures() -> None:
    config = replace(LOCAL, base_channels=32, normalization="group")
    model = build(config)
    seen: list[torch.Size] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))

    pictures = model.decode(grid(config, 19, 30))

    assert pictures.shape == (2, 3, 76, 120)
    assert {tuple(shape) for shape in seen} == {(8, 8)}


def test_tiles_of_a_global_decoder_fade_into_each_other() -> None:
    # The decoder paints each tile in one grey, its first code; between tiles there is a ramp.
    def paint(codes: torch.Tensor) -> torch.Tensor:
        return codes[:, :1, :1, None].float().expand(-1, 3, 2 * codes.shape[1], 2 * codes.shape[2])

    codes = torch.arange(12)[None, None, :]

    row = decode_in_tiles(paint, codes, Tiling(size=8, margin=0, fade=4), 2)[0, 0, 0]

    # Tiles begin at 0 and 4: pixels 8 to 15 belong to both, the second's weight rises by 1/8.
    steps = [4 * (index + 0.5) / 8 for index in range(8)]
    torch.testing.assert_close(row, torch.tensor([0.0] * 8 + steps + [4.0] * 8))


def test_tiles_cover_every_side_and_reach_its_end() -> None:
    tiling = Tiling(size=8, margin=1, fade=2)

    assert starts(5, tiling) == [0]
    assert starts(8, tiling) == [0]
    assert starts(9, tiling) == [0, 1]
    assert starts(17, tiling) == [0, 4, 8, 9]


def test_larger_picture_becomes_one_grid_and_a_picture_again() -> None:
    model = build(LOCAL)
    images = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1

    codes = model.encode_any_size(images)

    assert codes.shape == (1, 12, 16)
    assert model.decode(codes).shape == (1, 3, 48, 64)
    with pytest.raises(InputError, match="multiples of 4"):
        model.encode_any_size(images[..., :62])


def test_tiles_of_the_paper_s_shape_are_as_large_as_its_pictures() -> None:
    config = ImageTokenizerConfig(attention_resolutions=(32,))

    assert tiling_of(config) == Tiling(size=32, margin=0, fade=8)
