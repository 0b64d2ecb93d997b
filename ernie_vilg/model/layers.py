"""The seam between the model and tensor parallelism.

A block asks a `ParallelLayers` value for its linear layers and embeddings. On one device
they are torch's own, so that the model is plain torch; on many, `ernie_vilg.parallel`
supplies megatron-core's, under the same parameter names.

Source: ours; column and row splitting are those of Megatron-LM (arXiv:1909.08053, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ParallelLayers:
    """Constructors of layers that hold `1 / size` of their weights, and the loss over them."""

    column_linear: Callable[[int, int], nn.Module]
    """(in, out): [..., in] to [..., out / size]. Output features are split."""
    row_linear: Callable[[int, int], nn.Module]
    """(in, out): [..., in / size] to [..., out]. Input features are split."""
    vocab_embedding: Callable[[int, int], nn.Module]
    """(vocab, hidden): ids [batch, seq] to [batch, seq, hidden]. Rows are split."""
    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    """(logits [..., vocab / size], targets int64 [...]) to negative log-likelihood in nats,
    float32 [...]."""
    size: int
    """Devices that share each layer."""


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


SINGLE_DEVICE = ParallelLayers(
    column_linear=nn.Linear,
    row_linear=nn.Linear,
    vocab_embedding=nn.Embedding,
    cross_entropy=cross_entropy,
    size=1,
)
