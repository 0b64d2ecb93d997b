"""The architecture of a public checkpoint, from its tensors and, where given, its settings.

Channels, multipliers, blocks, attention and the codebook show in names and shapes. The side of the
pictures and, with LlamaGen, the rule of the codes do not. Where the model's own settings file is
given, all of it must agree.

Source: ours, for the networks of taming-transformers and LlamaGen.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.import_image_tokenizer import ForeignLayout, ImportImageTokenizerConfig
from ernie_vilg.errors import InputError

_LEVELS = {"taming": "encoder.down", "llamagen": "encoder.conv_blocks"}
_BLOCKS = {"taming": "block", "llamagen": "res"}
_RGB = 3
_KEYS = {
    "ch": "base_channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "num_residual_blocks",
    "attn_resolutions": "attention_resolutions",
    "resolution": "image_size",
    "z_channels": "latent_channels",
    "n_embed": "codebook_size",
    "embed_dim": "embedding_size",
}
"""Settings here, by their names in taming's settings files."""


def recognise_layout(tensors: Mapping[str, Tensor], layout: str) -> ForeignLayout:
    """Return the layout of a checkpoint.

    Args:
        tensors: its tensors by name.
        layout: setting `layout`: "auto", or the layout that it must have.

    Raises:
        InputError: it has none of the known layouts, or another one than `layout`.
    """
    found: list[ForeignLayout] = []
    if any(name.startswith("encoder.down.") for name in tensors):
        found.append("taming")
    if any(name.startswith("encoder.conv_blocks.") for name in tensors):
        found.append("llamagen")
    if len(found) != 1:
        shown = ", ".join(sorted(tensors)[:3]) or "none"
        raise InputError(
            f"layout={layout}: the checkpoint's {len(tensors)} tensors ({shown}) have neither "
            "taming-transformers' names (encoder.down.*) nor LlamaGen's (encoder.conv_blocks.*): "
            "name a VQGAN of one of these, or set weights to another part of the file"
        )
    if layout not in ("auto", found[0]):
        raise InputError(
            f"layout={layout}, but the names of the weights are those of {found[0]}: set "
            f"layout={found[0]} or auto"
        )
    return found[0]


def infer_architecture(
    tensors: Mapping[str, Tensor],
    layout: ForeignLayout,
    config: ImportImageTokenizerConfig,
    declared: Mapping[str, Any],
) -> ImageTokenizerConfig:
    """Return the architecture of a checkpoint.

    Args:
        tensors: its tensors by name.
        layout: its layout.
        config: settings of the import.
        declared: settings of the model's own file, from `declared_settings`; empty without one.

    Raises:
        InputError: the network is none of ours, or weights, settings and file disagree.
    """
    image_size = config.image_size or declared.get("image_size")
    if image_size is None:
        raise InputError(
            "image_size=null: weights do not tell the side of the pictures that the network was "
            "trained on; set image_size (256 for most public models), or model_config to the "
            "model's .yaml"
        )
    inferred: dict[str, Any] = {
        **_codebook(tensors, layout, config.quantizer),
        **_channels(tensors, layout),
        **_attention(tensors, layout, image_size),
        "image_size": image_size,
    }
    _check_declared(inferred, declared)
    return ImageTokenizerConfig(**inferred)


def declared_settings(content: Any, path: str | None) -> dict[str, Any]:
    """Return what a model's settings file in taming's form says, by the names of settings here.

    Args:
        content: content of the file, as plain values.
        path: setting `model_config`; null returns nothing.

    Raises:
        InputError: the file describes no VQGAN of RGB pictures.
    """
    if path is None:
        return {}
    model = content.get("model", content) if isinstance(content, dict) else {}
    parameters = model.get("params") if isinstance(model, dict) else None
    shape = parameters.get("ddconfig") if isinstance(parameters, dict) else None
    if not isinstance(parameters, dict) or not isinstance(shape, dict):
        raise InputError(
            f"model_config={path} has no model.params.ddconfig: name the settings file of a VQGAN "
            "of taming-transformers or latent-diffusion, or leave model_config out"
        )
    for key, needed in {"double_z": False, "in_channels": _RGB, "out_ch": _RGB}.items():
        if shape.get(key, needed) != needed:
            raise InputError(
                f"model_config={path}: ddconfig.{key}={shape[key]} where this network needs "
                f"{needed}: it is no VQGAN of RGB pictures"
            )
    values = {**parameters, **shape}
    found = {ours: values[theirs] for theirs, ours in _KEYS.items() if theirs in values}
    if str(model.get("target", "")).endswith("GumbelVQ"):
        found["quantizer"] = "gumbel"
    return found


def _codebook(
    tensors: Mapping[str, Tensor], layout: ForeignLayout, quantizer: str
) -> dict[str, Any]:
    """Return the settings of the codes."""
    if "quantize.used" in tensors:
        raise InputError(
            "the checkpoint renumbers its codes (quantize.used), which shards could not tell apart "
            "from others: import the checkpoint without remap"
        )
    if "quantize.embed.weight" in tensors:
        found, table = "gumbel", tensors["quantize.embed.weight"]
    elif "quantize.embedding.weight" in tensors:
        is_averaged = "quantize.embedding.cluster_size" in tensors
        found = "ema" if is_averaged else "normalized" if layout == "llamagen" else "nearest"
        table = tensors["quantize.embedding.weight"]
    else:
        raise InputError(
            "the checkpoint has no codebook (quantize.embedding.weight or quantize.embed.weight): "
            "it is no VQGAN, perhaps an autoencoder without codes; name another"
        )
    # A plain table does not tell how it is searched: these two may be chosen.
    is_free = found in ("nearest", "normalized") and quantizer in ("nearest", "normalized")
    if quantizer not in ("auto", found) and not is_free:
        raise InputError(
            f"quantizer={quantizer}, but the checkpoint's weights are those of quantizer={found}: "
            f"set quantizer={found} or auto"
        )
    return {
        "quantizer": found if quantizer == "auto" else quantizer,
        "codebook_size": table.shape[0],
        "embedding_size": table.shape[1],
    }


def _channels(tensors: Mapping[str, Tensor], layout: ForeignLayout) -> dict[str, Any]:
    """Return the settings of the convolutions."""
    level, block = _LEVELS[layout], _BLOCKS[layout]
    first = _shape(tensors, "encoder.conv_in.weight")
    if first[1] != _RGB:
        raise InputError(
            f"the checkpoint's encoder takes {first[1]} channels, not {_RGB}: it is no VQGAN of "
            "RGB pictures; name another"
        )
    widths, blocks = [], set()
    for index in range(_count(tensors, rf"{re.escape(level)}\.(\d+)\.")):
        widths.append(_shape(tensors, f"{level}.{index}.{block}.0.conv2.weight")[0])
        blocks.add(_count(tensors, rf"{re.escape(level)}\.{index}\.{block}\.(\d+)\."))
    base = first[0]
    if len(blocks) != 1 or any(width % base for width in widths):
        raise InputError(
            f"the checkpoint's resolutions have {sorted(blocks)} blocks and {widths} channels: "
            f"this network has as many blocks at each, and multiples of {base} channels"
        )
    return {
        "base_channels": base,
        "channel_multipliers": tuple(width // base for width in widths),
        "num_residual_blocks": blocks.pop(),
        "latent_channels": _shape(tensors, "quant_conv.weight")[1],
    }


def _attention(
    tensors: Mapping[str, Tensor], layout: ForeignLayout, image_size: int
) -> dict[str, Any]:
    """Return the settings of the attention."""
    level = _LEVELS[layout]
    count = _count(tensors, rf"{re.escape(level)}\.(\d+)\.")
    sides = tuple(
        image_size >> index
        for index in range(count)
        if _count(tensors, rf"{re.escape(level)}\.{index}\.attn\.(\d+)\.")
    )
    return {
        "attention_resolutions": sides,
        "middle_attention": image_size >> (count - 1) not in sides,
    }


def _check_declared(inferred: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """Check that weights and settings file agree."""
    names = {ours: theirs for theirs, ours in _KEYS.items()}
    for name, value in declared.items():
        found, said = inferred[name], tuple(value) if isinstance(value, list) else value
        if name == "attention_resolutions":
            # The file may name sides at which the network does not compute.
            count = len(inferred["channel_multipliers"])
            computed = {inferred["image_size"] >> index for index in range(count)}
            found, said = set(found), set(said) & computed
        if found != said:
            raise InputError(
                f"model_config says {names.get(name, 'target')}={value}, but weights and settings "
                f"give {name}={inferred[name]}: correct or leave out model_config, or the setting"
            )


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors or tensors[name].dim() != 4:
        raise InputError(
            f"the checkpoint has no convolution {name}: it is no VQGAN of taming-transformers or "
            "LlamaGen, or not all of one; name another"
        )
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return 1 more than the largest index that names have at a place, 0 without any."""
    found = [re.match(pattern, name) for name in tensors]
    return max((int(match[1]) + 1 for match in found if match), default=0)
