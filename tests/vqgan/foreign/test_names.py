"""The network is that of the public models: their weights give their codes and pictures."""

import pytest
import torch

from benchmarks.image_tokenizer_parts.plain import PlainShape, PlainVQGAN
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.foreign.names import foreign_names, to_foreign, to_network

SHAPE = PlainShape(
    ch=32,
    ch_mult=(1, 2, 2),
    num_res_blocks=2,
    attn_resolutions=(8,),
    resolution=32,
    z_channels=16,
    embed_dim=16,
    n_embed=40,
)
CONFIG = ImageTokenizerConfig(
    image_size=32,
    codebook_size=40,
    embedding_size=16,
    latent_channels=16,
    base_channels=32,
    channel_multipliers=(1, 2, 2),
    num_residual_blocks=2,
    attention_resolutions=(8,),
)


def plain(shape: PlainShape = SHAPE) -> PlainVQGAN:
    torch.manual_seed(0)
    model = PlainVQGAN(shape).eval().requires_grad_(False)
    for name, weight in model.named_parameters():  # norms differ from the identity
        if "norm" in name:
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


def ours(theirs: PlainVQGAN, config: ImageTokenizerConfig = CONFIG) -> VQGAN:
    model = VQGAN(config).eval().requires_grad_(False)
    model.load_state_dict(to_network(theirs.state_dict(), foreign_names(model, "taming")))
    return model


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1


def test_outputs_of_the_plain_encoder_are_ours() -> None:
    theirs = plain()
    model, images = ours(theirs), pictures(2)

    expected = theirs.quant_conv(theirs.encoder(images))

    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.encode(images), theirs.codes(images))


def test_pictures_of_the_plain_decoder_are_ours() -> None:
    theirs = plain()
    model = ours(theirs)
    vectors = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))

    expected = theirs.pictures_of_vectors(vectors)

    torch.testing.assert_close(model.decoder(vectors), expected, rtol=1e-5, atol=1e-5)


def test_every_weight_has_a_name_and_every_name_a_weight() -> None:
    theirs = plain()
    names = foreign_names(ours(theirs), "taming")

    assert sorted(name for group in names.values() for name in group) == sorted(theirs.state_dict())


def test_weights_come_back_as_they_went() -> None:
    theirs = plain()
    model = ours(theirs)

    back = to_foreign(model.state_dict(), foreign_names(model, "taming"))

    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.levels.1.0.convolution.weight", "encoder.conv_blocks.0.downsample.conv.weight"),
        ("encoder.levels.1.1.first_convolution.bias", "encoder.conv_blocks.1.res.0.conv1.bias"),
        ("encoder.levels.2.4.output.weight", "encoder.conv_blocks.2.attn.1.proj_out.weight"),
        ("encoder.middle.1.normalization.bias", "encoder.mid.1.norm.bias"),
        ("decoder.levels.0.0.shortcut.weight", None),
        ("decoder.levels.1.0.convolution.bias", "decoder.conv_blocks.0.upsample.conv.bias"),
        ("decoder.levels.2.1.shortcut.weight", "decoder.conv_blocks.2.res.0.nin_shortcut.weight"),
        ("decoder.projection.weight", "post_quant_conv.weight"),
        ("quantizer.codebook", "quantize.embedding.weight"),
    ],
)
def test_llamagen_names_the_layers_in_its_own_way(name: str, expected: str | None) -> None:
    names = foreign_names(VQGAN(CONFIG), "llamagen")

    assert names.get(name) == (None if expected is None else (expected,))


def test_a_network_of_our_own_has_no_public_layout() -> None:
    config = ImageTokenizerConfig(image_size=32, patch_size=4, channel_multipliers=(1, 2))

    with pytest.raises(InputError, match=r"patch_size=4.*latent_channels=null.*middle_attention"):
        foreign_names(VQGAN(config), "taming")
