"""One transformer layer: attention and feed-forward, each after a layer norm.

Source: Vaswani et al. 2017 (arXiv:1706.03762) in its pre-norm form (Xiong et al. 2020,
arXiv:2002.04745). ERNIE-ViLG does not state where its norms are. Sandwich norms are those of
CogView (arXiv:2105.13290), gradient scaling per block is DALL-E's (arXiv:2102.12092).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention import Attention, KeyValueCache
from ernie_vilg.model.attention_mask import pattern_of_block
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.model.lora.adapter import add_adapters
from ernie_vilg.model.recompute import recomputed


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, per slot."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        inner = config.ffn_multiplier * config.hidden_size
        self.is_selective = layers.activation_checkpointing == "selective"
        self.up = layers.column_linear(config.hidden_size, inner)
        self.down = layers.row_linear(inner, config.hidden_size)
        # Exact, as in BERT and ERNIE; on a CPU it is also 2.6 times as fast as the tanh form.
        self.activation = nn.GELU()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., hidden] to [..., hidden]."""
        inner = self.up(hidden)
        active = self.activation(inner)
        if not self.is_selective:
            return self.down(active)
        with recomputed(active, lambda: self.activation(inner)):
            return self.down(active)


class Branch(nn.Module):
    """A residual branch: norm, attention or feed-forward, and the options that scale its sum."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        size, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.is_selective = layers.activation_checkpointing == "selective"
        self.gradient_scale = config.block_gradient_scale
        self.norm = nn.LayerNorm(size, eps=epsilon)
        self.output_norm = nn.LayerNorm(size, eps=epsilon) if config.sandwich_norm else None
        self.scale = (
            (2 * config.num_layers) ** -0.5 if config.residual_scaling == "branch" else None
        )
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None

    def forward(self, hidden: Tensor, middle: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `hidden` plus the output of the branch.

        Args:
            hidden: float [..., hidden].
            middle: attention or feed-forward, from [..., hidden] to [..., hidden].
        """
        entering = hidden
        if self.gradient_scale != 1:
            entering = ScaleGradient.apply(hidden, 1 / self.gradient_scale)
        normed = self.norm(entering)
        if self.is_selective:
            with recomputed(normed, lambda: self.norm(entering)):
                output = middle(normed)
        else:
            output = middle(normed)
        if self.output_norm is not None:
            output = self.output_norm(output)
        if self.scale is not None:
            output = output * self.scale
        if self.dropout is not None:
            output = self.dropout(output)
        if self.gradient_scale != 1:
            output = ScaleGradient.apply(output, self.gradient_scale)
        return hidden + output


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number.

    Between a scale of 1 / s at the input of a branch and one of s at its output, gradients are s
    times as large, which keeps small ones from vanishing in float16. Gradients of weights in
    between are s times too large; ernie_vilg.parallel divides them.
    """

    @staticmethod
    def forward(context: Any, tensor: Tensor, scale: float) -> Tensor:
        """Return the tensor."""
        context.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient times the scale."""
        return gradients[0] * context.scale, None


class Block(nn.Module):
    """Attention and feed-forward with residual connections."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers, block_index: int) -> None:
        """Build the block.

        Args:
            config: the model's shape.
            layers: constructors of its layers.
            block_index: index of the block, from 1; it decides the attention pattern.
        """
        super().__init__()
        self.is_checkpointed = layers.activation_checkpointing == "full"
        pattern = pattern_of_block(config, block_index)
        self.attention = Attention(config, layers, pattern)
        self.attention_branch = Branch(config, layers)
        self.feed_forward = FeedForward(config, layers)
        self.feed_forward_branch = Branch(config, layers)
        add_adapters(self, config, block_index)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states of both directions.

        Args:
            hidden: float [direction, batch, seq, hidden]; with sequence parallelism this rank's
                part of the tokens, [tokens / size, hidden].
        """
        if self.is_checkpointed and torch.is_grad_enabled():
            return checkpoint(self._mix, hidden, self.attention, use_reentrant=False)
        return self._mix(hidden, self.attention)

    def extend(
        self, hidden: Tensor, cache: KeyValueCache, direction: int, slots: slice, num_keys: int
    ) -> Tensor:
        """Compute some slots of one direction, given the cache of the slots before them.

        Args:
            hidden: the slots' states, float [1, batch, slots, hidden].
            cache: this layer's keys and values; those of the slots are written into it.
            direction: a `Direction`.
            slots: positions of the slots in the sequence.
            num_keys: number of the cache's first slots that the slots may see.

        Returns:
            the slots' new states, float [1, batch, slots, hidden].
        """
        return self._mix(
            hidden, lambda normed: self.attention.extend(normed, cache, direction, slots, num_keys)
        )

    def _mix(self, hidden: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        hidden = self.attention_branch(hidden, attention)
        return self.feed_forward_branch(hidden, self.feed_forward)
