"""The cross-entropy of logits, in float32, without a float32 copy of them.

The forward pass keeps two numbers per row: the highest logit, and the sum of exponentials below it.
The backward pass computes the exponentials again and writes the gradient in the precision of the
logits. Both take a chunk of rows at a time, so that float32 values exist for one chunk only. Every
row is computed alone: the chunks and the size of the micro-batch change no bit of it.

A vocabulary may be split over ranks: each has some columns of the logits and all targets. The ranks
then take two small reductions, a maximum and a sum, over all rows at once.

Source: the split form is that of Megatron-LM (arXiv:1909.08053, section 3).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Largest number of logits in a chunk: 16 MiB in float32, which fit into a GPU's cache."""

_LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True, kw_only=True)
class VocabularySplit:
    """A vocabulary whose logits are split over ranks, in equal parts, in order of the ranks."""

    rank: int
    """Index of this rank's part."""
    maximum: Callable[[Tensor], Tensor]
    """Function that returns the elementwise maximum over the ranks; no gradient passes it."""
    total: Callable[[Tensor], Tensor]
    """Function that returns the elementwise sum over the ranks; no gradient passes it."""


def vocab_cross_entropy(
    logits: Tensor, targets: Tensor, split: VocabularySplit | None = None
) -> tuple[Tensor, Tensor]:
    """Return each target's negative log-likelihood, and the softmax's denominator.

    Args:
        logits: unnormalised log-probabilities, float [..., vocab / ranks].
        targets: ids in the whole vocabulary, int64 [...].
        split: division of the vocabulary over ranks; all of them must call, forward only.

    Returns:
        nats, float32 [...], and the logarithm of the softmax's denominator, float32 [...]. Both can
        be differentiated once.
    """
    result: tuple[Tensor, Tensor] = _CrossEntropy.apply(logits, targets, split)
    return result


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, logits: Tensor, targets: Tensor, split: VocabularySplit | None
    ) -> tuple[Tensor, Tensor]:
        rows, columns = logits.flatten(0, -2), targets.flatten()
        is_here: Any = None
        if split is not None:
            columns = columns - split.rank * rows.shape[1]
            is_here = (columns >= 0) & (columns < rows.shape[1])
            columns = columns.clamp(0, rows.shape[1] - 1)
        highest, sums = _statistics(rows)
        local = highest
        if split is not None:
            highest = split.maximum(local)
        chosen = _column(rows, columns).float() - highest
        if split is not None:
            chosen = torch.where(is_here, chosen, 0.0)
            sums = sums * (local - highest).exp()
            sums, chosen = split.total(torch.stack([sums, chosen])).unbind()
        context.save_for_backward(logits, columns, is_here, highest, sums, chosen)
        logarithms = sums.log()
        losses, partitions = logarithms - chosen, logarithms + highest
        return losses.view(targets.shape), partitions.view(targets.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, columns, is_here, highest, sums, chosen = context.saved_tensors
        rows = logits.flatten(0, -2)
        of_losses, of_partitions = (gradient.flatten() for gradient in gradients)
        scale = (of_losses + of_partitions) / sums
        # In float32 up to the difference: in bfloat16 it would cancel where a target is certain.
        at_targets = (chosen.exp() * scale - of_losses).to(rows.dtype)
        result = torch.empty_like(rows)
        for chunk in _chunks(rows):
            part, index = result[chunk], columns[chunk]
            torch.mul(_exponentials(rows, highest, chunk), scale[chunk, None], out=part)
            values = at_targets[chunk]
            if is_here is not None:
                values = torch.where(is_here[chunk], values, _column(part, index))
            part.scatter_(1, index[:, None], values[:, None])
        return result.view(logits.shape), None, None


def _statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest logit and the sum of exponentials below it, float32 [rows] each."""
    highest = rows.new_empty(len(rows), dtype=torch.float32)
    sums = torch.empty_like(highest)
    for chunk in _chunks(rows):
        # A part of the vocabulary that is impossible as a whole has a sum of 0, not of NaN.
        highest[chunk] = rows[chunk].amax(dim=1).float().clamp_(min=_LOWEST)
        torch.sum(_exponentials(rows, highest, chunk), dim=1, out=sums[chunk])
    return highest, sums


def _chunks(rows: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // rows.shape[1])
    return (slice(first, first + size) for first in range(0, len(rows), size))


def _exponentials(rows: Tensor, highest: Tensor, chunk: slice) -> Tensor:
    """Return the exponentials of a chunk's logits below their row's highest, float32."""
    return torch.sub(rows[chunk], highest[chunk, None]).exp_()


def _column(rows: Tensor, columns: Tensor) -> Tensor:
    """Return one element of each row."""
    return rows.gather(1, columns[:, None]).squeeze(1)
