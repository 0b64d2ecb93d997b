"""The interface between the model and the devices that it runs on.

A `ParallelLayers` value gives a block its linear layers, its embeddings and its mode of activation
checkpointing. On one device the layers are torch's own, so the model is plain torch. On several,
`ernie_vilg.parallel` supplies split ones, under the same parameter names.

Source: column and row splitting are those of Megatron-LM (arXiv:1909.08053, section 3); splitting
tokens between them is Korthikanti et al. 2022 (arXiv:2205.05198).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ernie_vilg.model.cross_entropy import vocab_cross_entropy
from ernie_vilg.model.linear import Linear


@dataclass(frozen=True, kw_only=True)
class ParallelLayers:
    """Constructors of layers that hold `1 / size` of their weights, and the loss over them.

    With sequence parallelism, hidden states between blocks are `[tokens / size, hidden]`: this
    rank's part of the slots of both directions. Without it, `split_tokens` and `join_tokens` return
    their argument, and tensors keep all their dimensions.
    """

    column_linear: Callable[[int, int], nn.Module]
    """Linear layer (in, out) with split output features, from [..., in] or split tokens to
    [..., out / size]."""
    row_linear: Callable[[int, int], nn.Module]
    """Linear layer (in, out) with split input features, from [..., in / size] to [..., out] or
    split tokens."""
    output_linear: Callable[[int, int], nn.Module]
    """The same as `column_linear` outside the blocks, where tokens are never split."""
    join_linear: Callable[[int, int], nn.Module]
    """The same as `row_linear` outside the blocks, where tokens are never split."""
    vocab_embedding: Callable[[int, int], nn.Module]
    """Embedding (vocab, hidden) with split rows, from ids [batch, seq] to [batch, seq, hidden]."""
    split_tokens: Callable[[Tensor], Tensor]
    """Function that returns this rank's part of the tokens of [..., hidden], if they are split."""
    join_tokens: Callable[[Tensor], Tensor]
    """Function that gathers the tokens of all ranks, to [tokens, hidden]."""
    cross_entropy: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Function from (logits [..., vocab / size], targets int64 [...]) to the negative
    log-likelihood in nats and the logarithm of the softmax's denominator, float32 [...] each."""
    size: int
    """Number of devices that split each layer."""
    activation_checkpointing: str = "none"
    """Activation checkpointing: none, selective or full."""


unchanged = nn.Identity().forward
"""Function that returns its argument: one device holds all tokens."""

SINGLE_DEVICE = ParallelLayers(
    column_linear=Linear,
    row_linear=Linear,
    output_linear=Linear,
    join_linear=Linear,
    vocab_embedding=nn.Embedding,
    split_tokens=unchanged,
    join_tokens=unchanged,
    cross_entropy=vocab_cross_entropy,
    size=1,
)
