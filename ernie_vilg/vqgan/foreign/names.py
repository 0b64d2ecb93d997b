"""Names of this network's weights in public checkpoints.

Two layouts name the same layers: that of taming-transformers (also of latent diffusion's first
stages), and that of LlamaGen. In both, a downsampling belongs to the resolution that it leaves;
here it opens the one that it enters. In both, queries, keys and values are three convolutions; here
they are one.

Source: https://github.com/CompVis/taming-transformers and
https://github.com/FoundationVision/LlamaGen, under MIT licences.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.import_image_tokenizer import ForeignLayout
from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.autoencoder import VQGAN, Decoder, Encoder
from ernie_vilg.vqgan.layers import AttentionBlock, Downsampling, ResidualBlock, Upsampling

_RESIDUAL = {
    "first_normalization": "norm1",
    "first_convolution": "conv1",
    "second_normalization": "norm2",
    "second_convolution": "conv2",
    "shortcut": "nin_shortcut",
}
_ATTENTION = {
    "normalization": ("norm",),
    "query_key_value": ("q", "k", "v"),
    "output": ("proj_out",),
}
_NEAREST = {"codebook": "embedding.weight"}
_CODES = {
    "nearest": _NEAREST,
    "normalized": _NEAREST,
    "ema": {
        **_NEAREST,
        "average_counts": "embedding.cluster_size",
        "average_sums": "embedding.embed_avg",
    },
    "gumbel": {
        "codebook": "embed.weight",
        "projection.weight": "proj.weight",
        "projection.bias": "proj.bias",
    },
}
"""Tensors of each quantizer that public checkpoints have, and their names after `quantize.`."""


def foreign_names(model: VQGAN, layout: ForeignLayout) -> dict[str, tuple[str, ...]]:
    """Return the names of each tensor of a network in a public checkpoint.

    Args:
        model: the network.
        layout: naming of the checkpoint.

    Returns:
        names by this network's name; several where the tensor is their concatenation along its
        first dimension.

    Raises:
        InputError: that layout has no such network.
    """
    check_has_layout(model.config)
    names = dict(_encoder_names(model.encoder, layout))
    names.update(_decoder_names(model.decoder, layout))
    owners = {"encoder.projection": "quant_conv", "decoder.projection": "post_quant_conv"}
    found = {
        name: tuple(_renamed(name, names | {ours: (own,) for ours, own in owners.items()}))
        for name in model.state_dict()
        if not name.startswith("quantizer.")
    }
    for ours, theirs in _CODES[model.config.quantizer].items():
        found[f"quantizer.{ours}"] = (f"quantize.{theirs}",)
    return found


def check_has_layout(config: ImageTokenizerConfig) -> None:
    """Check that public layouts can hold a network.

    Raises:
        InputError: a setting is not of the public networks.
    """
    needed: dict[str, tuple[object, object]] = {
        "patch_size": (config.patch_size, 1),
        "encoder_kernel_size": (config.encoder_kernel_size, 3),
        "normalization": (config.normalization, "group"),
    }
    wrong = [f"{name}={value}" for name, (value, only) in needed.items() if value != only]
    if config.latent_channels is None:
        wrong.append("latent_channels=null")
    if not (config.middle_attention or config.grid_size in config.attention_resolutions):
        wrong.append("middle_attention=false")
    if config.quantizer not in _CODES:
        wrong.append(f"quantizer={config.quantizer}")
    if config.num_residual_blocks == 0:
        wrong.append("num_residual_blocks=0")
    if wrong:
        raise InputError(
            f"image_tokenizer.{', image_tokenizer.'.join(wrong)}: the public layouts taming and "
            "llamagen have no such network (patch_size=1, encoder_kernel_size=3, "
            "normalization=group, latent_channels, attention in the middle, and the quantizers "
            f"{', '.join(sorted(_CODES))} alone); keep this tokenizer in its own folder"
        )


def to_network(
    tensors: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under this network's names, in float32.

    Args:
        tensors: tensors by the checkpoint's names.
        names: names of each tensor, from `foreign_names`.
    """
    return {
        ours: torch.cat([tensors[name].float() for name in theirs])
        for ours, theirs in names.items()
        if all(name in tensors for name in theirs)
    }


def to_foreign(
    tensors: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """Return this network's tensors under a checkpoint's names.

    Args:
        tensors: tensors by this network's names.
        names: names of each tensor, from `foreign_names`.
    """
    return {
        name: part.clone()
        for ours, theirs in names.items()
        for name, part in zip(theirs, tensors[ours].chunk(len(theirs)), strict=True)
    }


def _renamed(name: str, names: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the names of a weight or bias, given those of layers."""
    layer, _, kind = name.rpartition(".")
    for owner in names[layer]:
        yield f"{owner}.{kind}"


def _encoder_names(
    encoder: Encoder, layout: ForeignLayout
) -> Iterator[tuple[str, tuple[str, ...]]]:
    last = len(encoder.levels) - 1
    for index in range(last + 1):
        own = f"encoder.down.{index}" if layout == "taming" else f"encoder.conv_blocks.{index}"
        yield from _level_names(f"encoder.levels.{index}", encoder.levels[index], own, layout)
        if index < last:
            yield f"encoder.levels.{index + 1}.0.convolution", (f"{own}.downsample.conv",)
    yield from _end_names("encoder", encoder.middle, layout)


def _decoder_names(
    decoder: Decoder, layout: ForeignLayout
) -> Iterator[tuple[str, tuple[str, ...]]]:
    last = len(decoder.levels) - 1
    for index in range(last + 1):  # coarsest resolution first
        taming, llamagen = f"decoder.up.{last - index}", f"decoder.conv_blocks.{index}"
        own = taming if layout == "taming" else llamagen
        yield from _level_names(f"decoder.levels.{index}", decoder.levels[index], own, layout)
        if index < last:
            yield f"decoder.levels.{index + 1}.0.convolution", (f"{own}.upsample.conv",)
    yield from _end_names("decoder", decoder.middle, layout)


def _level_names(
    ours: str, level: nn.Module, own: str, layout: ForeignLayout
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of the layers of one resolution but for its change."""
    counts = {"block": 0, "attn": 0}
    for position, layer in enumerate(level.children()):
        if isinstance(layer, Downsampling | Upsampling):
            continue
        kind = "attn" if isinstance(layer, AttentionBlock) else "block"
        word = "res" if layout == "llamagen" and kind == "block" else kind
        yield from _layer_names(f"{ours}.{position}", layer, f"{own}.{word}.{counts[kind]}")
        counts[kind] += 1


def _end_names(
    part: str, middle: nn.Module, layout: ForeignLayout
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of the layers at the ends of encoder or decoder."""
    words = ("block_1", "attn_1", "block_2") if layout == "taming" else ("0", "1", "2")
    for position, (layer, word) in enumerate(zip(middle.children(), words, strict=True)):
        yield from _layer_names(f"{part}.middle.{position}", layer, f"{part}.mid.{word}")
    for ours, theirs in (
        ("input", "conv_in"),
        ("normalization", "norm_out"),
        ("output", "conv_out"),
    ):
        yield f"{part}.{ours}", (f"{part}.{theirs}",)


def _layer_names(ours: str, layer: nn.Module, own: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(layer, ResidualBlock):
        for name, word in _RESIDUAL.items():
            yield f"{ours}.{name}", (f"{own}.{word}",)
    else:
        for name, words in _ATTENTION.items():
            yield f"{ours}.{name}", tuple(f"{own}.{word}" for word in words)
