"""Multi-head self-attention under a static mask, whole or one slot at a time.

Source: Vaswani et al. 2017 (arXiv:1706.03762); heads are split over devices as in
Megatron-LM (arXiv:1909.08053).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks
from ernie_vilg.model.block_sparse import BlockSparseAttention
from ernie_vilg.model.layers import ParallelLayers

PLAIN_ATTENTION_MAX_SEQ = 256
"""Largest number of keys for which three plain products beat the fused kernel on a CPU. The kernel
takes 2.1 times as long at 76 slots and 0.8 times at 320 (benchmarks/attention.py)."""


@dataclass(kw_only=True)
class KeyValueCache:
    """The keys and values of one layer, for token-by-token generation."""

    keys: Tensor
    """Keys, float [direction, batch, heads, seq, head_dim]; zero where not yet written."""
    values: Tensor
    """Values, float [direction, batch, heads, seq, head_dim]; zero where not yet written."""


class Attention(nn.Module):
    """Self-attention over the slots of each sequence."""

    mask: Tensor
    """Visible slots, bool [direction, query, key]."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers, pattern: Pattern) -> None:
        super().__init__()
        self.num_heads = config.num_heads // layers.size
        self.head_dim = config.head_dim
        self.pb_relax = config.pb_relax
        self.is_selective = layers.activation_checkpointing == "selective"
        # Output features are ordered [heads, (query, key, value), head_dim], so that each
        # rank's contiguous part holds whole heads.
        self.query_key_value = layers.column_linear(config.hidden_size, 3 * config.hidden_size)
        self.output = layers.row_linear(config.hidden_size, config.hidden_size)
        self.query_norm, self.key_norm = (
            nn.LayerNorm(config.head_dim, eps=config.layer_norm_epsilon)
            if config.qk_norm
            else nn.Identity()
            for _ in ("query", "key")
        )
        # Built on every pipeline stage rather than sent; not part of the weights.
        self.register_buffer("mask", both_masks(config, pattern), persistent=False)
        self.block_sparse = BlockSparseAttention(config, pattern)

    def forward(self, hidden: Tensor) -> Tensor:
        """Attend from every slot of both directions.

        Args:
            hidden: float [direction, batch, seq, hidden]; with sequence parallelism this rank's
                part of the tokens, [tokens / size, hidden].

        Returns:
            float, of the same shape.
        """
        return self._merge(self.attend_all(*self._project(hidden, *self.mask.shape[:2])))

    def attend_all(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from all slots, with the fastest kernel for their device.

        Args:
            query: float [direction, batch, heads, seq, head_dim].
            key: float, of the same shape.
            value: float, of the same shape.

        Returns:
            float, of the same shape.
        """
        if query.device.type == "cuda":
            return self.block_sparse(query, key, value)
        if self.is_selective and torch.is_grad_enabled():
            attended: Tensor = checkpoint(
                attend, query, key, value, self.mask, self.pb_relax, use_reentrant=False
            )
            return attended
        return attend(query, key, value, self.mask, self.pb_relax)

    def extend(
        self, hidden: Tensor, cache: KeyValueCache, direction: int, slots: slice, num_keys: int
    ) -> Tensor:
        """Attend from some slots of one direction to the slots before them.

        Args:
            hidden: float [1, batch, slots, hidden].
            cache: keys and values; those of the slots are written into it.
            direction: a `Direction`.
            slots: positions of the slots in the sequence.
            num_keys: number of the cache's first slots that the slots may see.

        Returns:
            float [1, batch, slots, hidden].
        """
        query, key, value = self._project(hidden, 1, hidden.shape[2])
        cache.keys[..., slots, :] = key
        cache.values[..., slots, :] = value
        key, value = cache.keys[..., :num_keys, :], cache.values[..., :num_keys, :]
        mask = self.mask[direction : direction + 1, slots, :num_keys]
        return self._merge(attend(query, key, value, mask, self.pb_relax))

    def _project(
        self, hidden: Tensor, num_directions: int, num_slots: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [direction, batch, heads, slots, head_dim]."""
        query, key, value = self.split_heads(
            self.query_key_value(hidden), num_directions, num_slots
        )
        return self.query_norm(query), self.key_norm(key), value

    def split_heads(
        self, projected: Tensor, num_directions: int, num_slots: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values before their norms, as views.

        Args:
            projected: output of `query_key_value`, float [..., 3 * hidden / size].
            num_directions: directions among the slots.
            num_slots: slots per direction and pair.

        Returns:
            float [direction, batch, heads, slots, head_dim] each.
        """
        split = projected.view(num_directions, -1, num_slots, self.num_heads, 3, self.head_dim)
        query, key, value = split.transpose(2, 3).unbind(-2)
        return query, key, value

    def _merge(self, attended: Tensor) -> Tensor:
        # [direction, batch, slots, heads * head_dim]
        return self.output(attended.transpose(2, 3).flatten(-2))


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, pb_relax: float = 0.0
) -> Tensor:
    """Return softmax(query key^T / sqrt(head_dim)) value over the visible keys.

    Args:
        query: float [direction, batch, heads, query, head_dim].
        key: float [direction, batch, heads, key, head_dim].
        value: float [direction, batch, heads, key, head_dim].
        mask: bool [direction, query, key].
        pb_relax: if not 0, queries are divided by it before the product, and scores multiplied by
            it after, in float32.

    Returns:
        float [direction, batch, heads, query, head_dim]. The softmax is computed in float32.
    """
    # The fused kernels keep scores in float32 and cannot multiply them by a factor.
    is_short = query.device.type == "cpu" and key.shape[-2] <= PLAIN_ATTENTION_MAX_SEQ
    if is_short or pb_relax:
        relax = pb_relax or 1.0
        scores = (query * (query.shape[-1] ** -0.5 / relax)) @ key.transpose(-1, -2)
        scores = scores.float().masked_fill(~mask[:, None, None], float("-inf"))
        if pb_relax:
            scores = (scores - scores.amax(dim=-1, keepdim=True).detach()) * relax
        return scores.softmax(dim=-1).to(value.dtype) @ value
    # The fused kernels take four dimensions, and each direction has its own mask.
    return torch.stack(
        [
            F.scaled_dot_product_attention(query[index], key[index], value[index], mask[index])
            for index in range(len(mask))
        ]
    )


@lru_cache(maxsize=64)
def num_visible_pairs(config: ModelConfig, pattern: Pattern) -> int:
    """Return the (query, key) pairs that count as a block's operations, per text-image pair.

    Full attention counts all pairs, including masked ones, as the literature does; sparse patterns
    count visible pairs only.
    """
    if pattern is Pattern.FULL:
        return len(Direction) * config.seq_length**2
    return int(both_masks(config, pattern).sum())
