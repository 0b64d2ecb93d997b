"""The seam between the model and the devices that it runs on.

A block asks a `ParallelLayers` value for its linear layers and embeddings, and for what its
backward pass may keep. On one device the layers are torch's own, so that the model is plain
torch; on many, `ernie_vilg.parallel` supplies megatron-core's, under the same parameter names.

Source: ours; column and row splitting are those of Megatron-LM (arXiv:1909.08053, section 3),
splitting tokens between them is Korthikanti et al. 2022 (arXiv:2205.05198).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ParallelLayers:
    """Constructors of layers that hold `1 / size` of their weights, and the loss over them.

    With sequence parallelism, what blocks hand to each other is `[tokens / size, hidden]`, this
    rank's share of all slots of both directions; without, `split_tokens` and `join_tokens` change
    nothing and tensors keep all their dimensions.
    """

    column_linear: Callable[[int, int], nn.Module]
    """(in, out): [..., in] or shared tokens to [..., out / size]. Output features are split."""
    row_linear: Callable[[int, int], nn.Module]
    """(in, out): [..., in / size] to [..., out] or shared tokens. Input features are split."""
    output_linear: Callable[[int, int], nn.Module]
    """As `column_linear`, outside the blocks: its input is never shared."""
    join_linear: Callable[[int, int], nn.Module]
    """As `row_linear`, outside the blocks: its output is never shared."""
    vocab_embedding: Callable[[int, int], nn.Module]
    """(vocab, hidden): ids [batch, seq] to [batch, seq, hidden]. Rows are split."""
    split_tokens: Callable[[Tensor], Tensor]
    """Takes this rank's share of the tokens of [..., hidden], where tokens are shared."""
    join_tokens: Callable[[Tensor], Tensor]
    """Puts the shares together again, to [tokens, hidden]."""
    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    """(logits [..., vocab / size], targets int64 [...]) to negative log-likelihood in nats,
    float32 [...]."""
    log_partition: Callable[[Tensor], Tensor]
    """logits [..., vocab / size] to the logarithm of the softmax's denominator, float32 [...]."""
    size: int
    """Devices that share each layer."""
    activation_checkpointing: str = "none"
    """none, selective or full: what the backward pass computes again."""


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
    """Return the tensor: all of the tokens are this device's."""
    return tensor


SINGLE_DEVICE = ParallelLayers(
    column_linear=nn.Linear,
    row_linear=nn.Linear,
    output_linear=nn.Linear,
    join_linear=nn.Linear,
    vocab_embedding=nn.Embedding,
    split_tokens=unchanged,
    join_tokens=unchanged,
    cross_entropy=cross_entropy,
    log_partition=log_partition,
    size=1,
)
