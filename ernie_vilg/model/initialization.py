"""Fresh weights that do not depend on the layout.

Every parameter is drawn whole from a generator named by the seed and the parameter's name,
then cut to the share of the rank that holds it. One process and any mix of tensor, pipeline
and data parallelism therefore start from the same weights, bit for bit.

Source: ours; the scale of residual projections is GPT-2's.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig

_COLUMN_SPLIT = ("query_key_value", "up", "image_logits", "text_logits")
_VOCAB_SPLIT = ("text_embedding", "image_embedding")
_ROW_SPLIT = ("attention.output", "feed_forward.down")


def split_dimension(name: str) -> int | None:
    """Return the dimension of a parameter that tensor parallelism splits, None if none is.

    Args:
        name: such as "3.attention.output.weight".
    """
    owner, _, kind = name.rpartition(".")
    if owner.endswith(_COLUMN_SPLIT + _VOCAB_SPLIT):
        return 0
    if owner.endswith(_ROW_SPLIT) and kind == "weight":
        return 1
    return None


def takes_weight_decay(name: str) -> bool:
    """Whether a parameter is a matrix of a linear layer; norms, biases, embeddings are not."""
    owner, _, kind = name.rpartition(".")
    return kind == "weight" and owner.endswith(_COLUMN_SPLIT + _ROW_SPLIT)


def initialize(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: ModelConfig,
    seed: int,
    *,
    tensor_rank: int = 0,
    tensor_size: int = 1,
) -> None:
    """Fill parameters with fresh weights, in place.

    Args:
        parameters: names (layer index first) and this rank's share of each.
        config: the model's shape.
        seed: names the weights.
        tensor_rank: which share of split parameters this rank holds.
        tensor_size: shares that split parameters are cut into.
    """
    for name, parameter in parameters:
        dimension = split_dimension(name)
        shape = list(parameter.shape)
        if dimension is not None:
            shape[dimension] *= tensor_size
        whole = _fresh(name, shape, config, seed)
        share = whole if dimension is None else whole.chunk(tensor_size, dimension)[tensor_rank]
        with torch.no_grad():
            parameter.copy_(share)


def _fresh(name: str, shape: list[int], config: ModelConfig, seed: int) -> Tensor:
    owner, _, kind = name.rpartition(".")
    if kind == "bias":
        return torch.zeros(shape)
    if owner.endswith("norm"):
        return torch.ones(shape)
    std = config.initializer_std
    if owner.endswith(_ROW_SPLIT):
        std /= (2 * config.num_layers) ** 0.5
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)
