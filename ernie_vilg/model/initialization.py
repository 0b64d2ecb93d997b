"""Fresh weights that do not depend on the layout.

Every parameter is drawn whole from a generator that is seeded by the run's seed and the parameter's
name, then cut to the part that the rank holds. One process and any mix of tensor, pipeline and data
parallelism therefore start from the same weights, bit for bit. Weights of an earlier run are cut
in the same way. Where the new run has more text slots, the earlier ones keep their vectors and the
others are fresh, since a piece's slot is its place in the caption. Where its pictures have another
number of rows, the vectors of rows and columns are interpolated, since a slot is a place in the
whole picture; the sum of both is then interpolated bilinearly.

Source: the scale of residual projections is GPT-2's; an adapter's first matrix is Gaussian, its
second one zero (LoRA, arXiv:2106.09685, section 4.1), with the standard deviation of loralib's;
interpolated image positions, ViT
(arXiv:2010.11929, section 3.2).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.lora.names import LORA_A, LORA_B, is_adapter, matrix_of
from ernie_vilg.system.seeds import seed_named

TIED = {"image_logits": "image_embedding", "text_logits": "text_embedding"}
"""The embedding table that replaces each output projection's weight when weights are tied."""

_COLUMN_SPLIT = ("query_key_value", "up", "image_logits", "text_logits")
_VOCAB_SPLIT = ("text_embedding", "image_embedding")
_ROW_SPLIT = ("attention.output", "down")
_OF_CODES = ("image_embedding.weight", "image_logits.weight")
_RESIDUAL = ("attention.output", "feed_forward.down")
_HEAD_SPLIT_NORM = ("query_norm", "key_norm")
_DECODER = ".reconstructor.decoder."
_OF_TEXT_SLOTS = ("0.text_position", "0.text_padding")
_OF_GRID = ("0.image_row", "0.image_column")


def original_name(name: str, config: ModelConfig) -> str:
    """Return the name under which a parameter is stored: the embedding table's for a tied one.

    On one device tied weights are one parameter. First and last pipeline stage each have a copy;
    both start with equal values and get the same gradients.
    """
    owner, _, kind = name.rpartition(".")
    table = TIED.get(owner.rpartition(".")[2])
    if config.tied_embeddings and table is not None and kind == "weight":
        return f"0.{table}.weight"
    return name


def split_dimension(name: str) -> int | None:
    """Return the dimension of a parameter that tensor parallelism splits, None if it splits none.

    Args:
        name: name such as "3.attention.output.weight".
    """
    owner, _, kind = name.rpartition(".")
    if _DECODER in name:
        return None
    if is_adapter(name):
        layer, matrix = matrix_of(name)
        if layer.endswith(_COLUMN_SPLIT):
            return 0 if matrix == LORA_B else None
        return 1 if matrix == LORA_A else None
    if owner.endswith(_COLUMN_SPLIT + _VOCAB_SPLIT):
        return 0
    if owner.endswith(_ROW_SPLIT) and kind == "weight":
        return 1
    return None


def has_partial_gradient(name: str, *, sequence_parallel: bool) -> bool:
    """Return whether tensor ranks must sum their gradients of a replicated parameter.

    Norms of queries and keys see only this rank's heads, and the second matrix of an adapter only
    the product with this rank's part of the first, if that is split. With sequence parallelism, all
    replicated parameters of a block see only this rank's tokens; those of embedding and head see
    all tokens.

    Args:
        name: name such as "3.attention_branch.norm.weight".
        sequence_parallel: whether tensor ranks split the tokens within blocks.
    """
    if split_dimension(name) is not None:
        return False
    if is_adapter(name) and matrix_of(name)[1] == LORA_B:
        return True
    owner = name.rpartition(".")[0]
    return owner.endswith(_HEAD_SPLIT_NORM) or (sequence_parallel and is_in_block(name))


def is_in_block(name: str) -> bool:
    """Return whether a parameter belongs to a block, not to the embedding or the head."""
    owner = name.rpartition(".")[0]
    return _DECODER not in name and ("attention" in owner or "feed_forward" in owner)


def is_inner_matrix(name: str, config: ModelConfig) -> bool:
    """Return whether a parameter is a linear layer's matrix in a block that is neither the first
    nor the last.

    Args:
        name: name such as "3.attention.output.weight"; layer 0 is the embedding.
        config: the model's shape.
    """
    index = int(name.partition(".")[0])
    is_inner = 1 < index < config.num_layers
    return is_inner and takes_weight_decay(name) and not is_adapter(name)


def takes_weight_decay(name: str) -> bool:
    """Return whether a parameter is the matrix of a linear layer or of its adapter, which decay.

    Args:
        name: the result of `original_name`.
    """
    owner, _, kind = name.rpartition(".")
    is_linear = owner.endswith(_COLUMN_SPLIT + _ROW_SPLIT) and _DECODER not in name
    return (kind == "weight" and is_linear) or is_adapter(name)


def initialize(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: ModelConfig,
    seed: int,
    *,
    tensor_rank: int = 0,
    tensor_size: int = 1,
    decoder: Mapping[str, Tensor] | None = None,
    codebook: Tensor | None = None,
    start: Callable[[str], Tensor] | None = None,
) -> None:
    """Fill parameters with fresh weights, or with those of an earlier run, in place.

    Args:
        parameters: names (layer index first) and this rank's part of each parameter.
        config: the model's shape.
        seed: seed of the weights.
        tensor_rank: index of this rank's part of split parameters.
        tensor_size: number of parts of split parameters.
        decoder: weights of the image tokenizer's decoder by name without prefix, if the
            reconstructor's decoder starts from them.
        codebook: vectors of the image tokenizer's codes, float32 [codebook, embedding], if the
            image embeddings start from them.
        start: returns the whole weights by the result of `original_name`, if the model starts from
            an earlier run's; they take the place of everything else but adapters, which are fresh.
    """
    for name, parameter in parameters:
        if start is None and decoder is not None and _DECODER in name:
            with torch.no_grad():
                parameter.copy_(decoder[name.partition(_DECODER)[2]])
            continue
        name = original_name(name, config)
        dimension = split_dimension(name)
        shape = list(parameter.shape)
        if dimension is not None:
            shape[dimension] *= tensor_size
        if start is not None and not is_adapter(name):
            whole = _fitted(name, start(name), shape, config, seed)
        elif codebook is not None and name.endswith(_OF_CODES):
            whole = _mapped(name, codebook, config, seed)
        else:
            whole = _fresh(name, shape, config, seed)
        share = whole if dimension is None else whole.chunk(tensor_size, dimension)[tensor_rank]
        with torch.no_grad():
            parameter.copy_(share)


class Uninitialized(TorchFunctionMode):
    """A context in which layers do not initialize their parameters.

    `initialize` or a weights file fills every parameter anyway, and torch's own initialization
    takes minutes for 10 billion.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Skip functions that fill a tensor in place."""
        kwargs = kwargs or {}
        is_filling = function in (Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_)
        if is_filling or getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _fresh(name: str, shape: list[int], config: ModelConfig, seed: int) -> Tensor:
    owner, _, kind = name.rpartition(".")
    is_in_decoder = _DECODER in name
    if kind == "bias":
        return torch.zeros(shape)
    if owner.endswith("norm") or (is_in_decoder and len(shape) == 1):
        return torch.ones(shape)
    std = config.initializer_std
    if is_adapter(name):
        if matrix_of(name)[1] == LORA_B:
            return torch.zeros(shape)
        std = (3 * shape[1]) ** -0.5
    elif ".reconstructor." in name:
        # Keeps the variance from input to output: the decoder expects the scale of the codebook.
        std = math.prod(shape[1:]) ** -0.5
    elif kind == "segment" and config.segment_std is not None:
        std = config.segment_std
    elif owner.endswith(_RESIDUAL) and config.residual_scaling == "initializer":
        std /= (2 * config.num_layers) ** 0.5
    generator = torch.Generator().manual_seed(seed_named(f"{seed}/{name}"))
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def _fitted(name: str, start: Tensor, shape: list[int], config: ModelConfig, seed: int) -> Tensor:
    """Return an earlier run's weights in the shape of this one's; only positions may differ."""
    if list(start.shape) == shape:
        return start
    if name in _OF_GRID:
        resized = F.interpolate(start.float().t()[None], shape[0], mode="linear")
        return resized[0].t()
    assert name in _OF_TEXT_SLOTS, f"{name} is {list(start.shape)} where {shape} belongs"
    kept = start[: shape[0]]
    return torch.cat([kept, _fresh(name, shape, config, seed)[len(kept) :]])


def _mapped(name: str, codebook: Tensor, config: ModelConfig, seed: int) -> Tensor:
    """Return a random linear map of the codes' vectors, float32 [codebook, hidden].

    The vectors are centred and scaled first, so the result has the standard deviation of the
    settings whatever the image tokenizer's scale.
    """
    vectors = codebook - codebook.mean(dim=0)
    generator = torch.Generator().manual_seed(seed_named(f"{seed}/{name}"))
    size = vectors.shape[1]
    directions = torch.empty(size, config.hidden_size).normal_(0.0, size**-0.5, generator=generator)
    return config.codebook_std / vectors.std() * vectors @ directions
