"""The interface between the model and the devices that it runs on.

A `ParallelLayers` value gives a block its linear layers, its embeddings and its mode of activation
checkpointing. On one device the layers are torch's own, so the model is plain torch. On several,
`ernie_vilg.parallel` supplies megatron-core's, under the same parameter names.

Source: column and row splitting are those of Megatron-LM (arXiv:1909.08053, section 3); splitting
tokens between them is Korthikanti et al. 2022 (arXiv:2205.05198).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

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
    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    """Function from (logits [..., vocab / size], targets int64 [...]) to the negative
    log-likelihood in nats, float32 [...]."""
    log_partition: Callable[[Tensor], Tensor]
    """Function from logits [..., vocab / size] to the logarithm of the softmax's denominator,
    float32 [...]."""
    size: int
    """Number of devices that split each layer."""
    activation_checkpointing: str = "none"
    """Activation checkpointing: none, selective or full."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each target's negative log-likelihood, computed in float32.

    Args:
        logits: unnormalised log-probabilities, float [..., vocab].
        targets: ids, int64 [...].

    Returns:
        nats, float32 [...].
    """
    losses = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def log_partition(logits: Tensor) -> Tensor:
    """Return the logarithm of the softmax's denominator, float32 [...], of logits [..., vocab]."""
    return logits.float().logsumexp(dim=-1)


def unchanged(tensor: Tensor) -> Tensor:
    """Return the tensor: one device holds all tokens."""
    return tensor


SINGLE_DEVICE = ParallelLayers(
    column_linear=Linear,
    row_linear=Linear,
    output_linear=Linear,
    join_linear=Linear,
    vocab_embedding=nn.Embedding,
    split_tokens=unchanged,
    join_tokens=unchanged,
    cross_entropy=cross_entropy,
    log_partition=log_partition,
    size=1,
)
