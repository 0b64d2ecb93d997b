"""One tensor rank's layers with the shapes and memory of the split ones, without communication.

They create, keep and overwrite the same tensors as `parallel.engine.split_linear` and, for the
embedding, megatron-core 0.16. If `tensor_size` is above 1, their values are meaningless.

Source: Megatron-LM (arXiv:1909.08053, arXiv:2205.05198).
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.model.cross_entropy import VocabularySplit, vocab_cross_entropy
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers
from ernie_vilg.model.linear import Linear


def rank_layers(
    tensor_size: int, checkpointing: str = "none", *, split_tokens: bool = False
) -> ParallelLayers:
    """Return constructors of one tensor rank's layers.

    Args:
        tensor_size: ranks that share each layer; must divide heads and both vocabularies.
        checkpointing: `ParallelismConfig.activation_checkpointing`.
        split_tokens: whether each rank holds a part of the tokens (sequence parallelism).
    """
    layers = replace(SINGLE_DEVICE, activation_checkpointing=checkpointing)
    if tensor_size == 1:
        return layers
    column, row = partial(_Column, tensor_size, False), partial(_Row, tensor_size, False)
    split = VocabularySplit(rank=0, maximum=torch.clone, total=torch.clone)
    layers = replace(
        layers,
        size=tensor_size,
        column_linear=column,
        output_linear=column,
        row_linear=row,
        join_linear=row,
        vocab_embedding=partial(_VocabEmbedding, tensor_size),
        cross_entropy=partial(vocab_cross_entropy, split=split),
    )
    if not split_tokens:
        return layers
    return replace(
        layers,
        column_linear=partial(_Column, tensor_size, True),
        row_linear=partial(_Row, tensor_size, True),
        split_tokens=partial(_ScatterTokens.apply, tensor_size),
        join_tokens=partial(_GatherTokens.apply, tensor_size),
    )


class _Column(Linear):
    """Linear layer whose output features are split."""

    def __init__(self, size: int, splits_tokens: bool, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs // size)
        self._num_parts = size if splits_tokens else 1

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in] to [..., out / size], or split tokens to [tokens, out / size]."""
        output: Tensor = _ColumnLinear.apply(hidden, self.weight, self.bias, self._num_parts)
        join = partial(_GatherTokens.apply, self._num_parts) if self._num_parts > 1 else None
        return self.adapted(hidden, output, join)


class _Row(Linear):
    """Linear layer whose input features are split."""

    def __init__(self, size: int, splits_tokens: bool, inputs: int, outputs: int) -> None:
        super().__init__(inputs // size, outputs)
        self._num_parts = size if splits_tokens else 1

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in / size] to [..., out], or to this rank's part of the tokens."""
        product = self.adapted(hidden, F.linear(hidden, self.weight))
        if self._num_parts > 1:
            summed: Tensor = _ScatterTokens.apply(self._num_parts, product)
        else:
            summed = _Sum.apply(product)
        return summed + self.bias


class _ColumnLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, bias: Tensor, num_parts: int
    ) -> Tensor:
        context.save_for_backward(hidden, weight)
        context.num_parts = num_parts
        return F.linear(_gathered(hidden, num_parts), weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = context.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        gathered = _gathered(hidden, context.num_parts)
        product = gradient @ weight
        # The sum over ranks takes place in a copy.
        entering = torch.empty_like(hidden)
        of_weight = gradient.t() @ gathered.flatten(0, -2)
        del product
        return entering, of_weight, gradient.sum(dim=0), None


def _gathered(hidden: Tensor, num_parts: int) -> Tensor:
    if num_parts == 1:
        return hidden
    return hidden.new_empty(hidden.shape[0] * num_parts, hidden.shape[1])


class _Sum(torch.autograd.Function):
    """Sums over the ranks in a copy; its backward pass changes nothing."""

    @staticmethod
    def forward(_context: Any, product: Tensor) -> Tensor:
        return product.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _ScatterTokens(torch.autograd.Function):
    """Takes this rank's part of the tokens; its backward pass gathers the gradient."""

    @staticmethod
    def forward(context: Any, size: int, tokens: Tensor) -> Tensor:
        context.shape = tokens.shape
        flat = tokens.flatten(0, -2)
        return flat.new_empty(flat.shape[0] // size, flat.shape[1])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].new_empty(context.shape)


class _GatherTokens(torch.autograd.Function):
    """Gathers all tokens; its backward pass takes this rank's part of the gradient."""

    @staticmethod
    def forward(context: Any, size: int, share: Tensor) -> Tensor:
        context.size = size
        return share.new_empty(share.shape[0] * size, share.shape[1])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        tokens, hidden = gradients[0].shape
        return None, gradients[0].new_empty(tokens // context.size, hidden)


class _VocabEmbedding(nn.Embedding):
    """Embedding whose rows are split."""

    def __init__(self, size: int, vocab: int, hidden: int) -> None:
        super().__init__(vocab // size, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [batch, seq] to [batch, seq, hidden]."""
        is_elsewhere = ids < 0
        vectors = F.embedding(ids.clone() - 0, self.weight)
        return vectors.masked_fill_(is_elsewhere[..., None], 0.0)
