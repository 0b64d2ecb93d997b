"""Multi-head self-attention under a static mask, whole or one slot at a time.

Source: Vaswani et al. 2017 (arXiv:1706.03762); heads are split over devices as in
Megatron-LM (arXiv:1909.08053).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.layers import ParallelLayers

PLAIN_ATTENTION_MAX_SEQ = 256
"""On a CPU, up to this many keys, three plain products beat the fused kernel: it takes 2.1 times
as long at 76 slots, 0.8 times at 320 (benchmarks/attention.py)."""


@dataclass(kw_only=True)
class KeyValueCache:
    """The keys and values of one layer, for generation token by token."""

    keys: Tensor
    """float [direction, batch, heads, seq, head_dim]; zero where not yet written."""
    values: Tensor
    """float [direction, batch, heads, seq, head_dim]; zero where not yet written."""


class Attention(nn.Module):
    """Self-attention over the slots of each sequence."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        self.num_heads = config.num_heads // layers.size
        self.head_dim = config.head_dim
        # Output features are ordered [heads, (query, key, value), head_dim], so that a
        # contiguous share of them is whole heads.
        self.query_key_value = layers.column_linear(config.hidden_size, 3 * config.hidden_size)
        self.output = layers.row_linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        cache: KeyValueCache | None = None,
        first_slot: int = 0,
    ) -> Tensor:
        """Attend.

        Args:
            hidden: float [direction, batch, query, hidden].
            mask: True where the query may attend to the key, bool [direction, query, key].
            cache: where given, the queries' keys and values are written into it at
                `first_slot` and on, and the keys attended to are the cache's first ones, as
                many as `mask` has.
            first_slot: the slot of the first query, with a cache.

        Returns:
            float [direction, batch, query, hidden].
        """
        split = self.query_key_value(hidden)
        split = split.unflatten(-1, (self.num_heads, 3, self.head_dim))
        # three of [direction, batch, heads, query, head_dim]
        query, key, value = split.transpose(2, 3).unbind(-2)
        if cache is not None:
            slots = slice(first_slot, first_slot + hidden.shape[2])
            cache.keys[..., slots, :] = key
            cache.values[..., slots, :] = value
            num_keys = mask.shape[-1]
            key, value = cache.keys[..., :num_keys, :], cache.values[..., :num_keys, :]
        attended = attend(query, key, value, mask)
        # [direction, batch, query, heads * head_dim]
        return self.output(attended.transpose(2, 3).flatten(-2))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return softmax(query key^T / sqrt(head_dim)) value over the visible keys.

    Args:
        query: float [direction, batch, heads, query, head_dim].
        key: float [direction, batch, heads, key, head_dim].
        value: float [direction, batch, heads, key, head_dim].
        mask: bool [direction, query, key].

    Returns:
        float [direction, batch, heads, query, head_dim]. The softmax is computed in float32.
    """
    if query.device.type == "cpu" and key.shape[-2] <= PLAIN_ATTENTION_MAX_SEQ:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores = scores.float().masked_fill(~mask[:, None, None], float("-inf"))
        return scores.softmax(dim=-1).to(value.dtype) @ value
    # The fused kernels take four dimensions, and each direction has its own mask.
    return torch.stack(
        [
            F.scaled_dot_product_attention(query[index], key[index], value[index], mask[index])
            for index in range(len(mask))
        ]
    )
