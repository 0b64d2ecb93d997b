"""One tensor rank's layers with the shapes and memory of megatron-core's, without communication.

They create, keep and overwrite the same tensors as megatron-core 0.16. If `tensor_size` is above 1,
their values are meaningless.

Source: megatron-core's tensor_parallel (arXiv:1909.08053, arXiv:2205.05198).
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.model.cross_entropy import VocabularySplit, vocab_cross_entropy
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers


def rank_layers(
    tensor_size: int, checkpointing: str = "none", gathered: Tensor | None = None
) -> ParallelLayers:
    """Return constructors of one tensor rank's layers.

    Args:
        tensor_size: ranks that share each layer; must divide heads and both vocabularies.
        checkpointing: `ParallelismConfig.activation_checkpointing`.
        gathered: with sequence parallelism, the buffer into which a layer's whole input is
            gathered, [tokens, hidden], one for all layers.
    """
    layers = replace(SINGLE_DEVICE, activation_checkpointing=checkpointing)
    if tensor_size == 1:
        return layers
    column, row = partial(_Column, tensor_size, None), partial(_Row, tensor_size, False)
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
    if gathered is None:
        return layers
    return replace(
        layers,
        column_linear=partial(_Column, tensor_size, gathered),
        row_linear=partial(_Row, tensor_size, True),
        split_tokens=partial(_ScatterTokens.apply, tensor_size),
        join_tokens=partial(_GatherTokens.apply, tensor_size),
    )


class _Column(nn.Linear):
    """Linear layer whose output features are split."""

    def __init__(self, size: int, gathered: Tensor | None, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs // size)
        self._gathered = gathered

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in] to [..., out / size], or split tokens to [tokens, out / size]."""
        flat = hidden.flatten(0, -2)
        output: Tensor = _Linear.apply(flat, self.weight, self.bias, self._gathered)
        return output if self._gathered is not None else output.unflatten(0, hidden.shape[:-1])


class _Row(nn.Linear):
    """Linear layer whose input features are split."""

    def __init__(self, size: int, shares: bool, inputs: int, outputs: int) -> None:
        super().__init__(inputs // size, outputs)
        self._size = size if shares else 1

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in / size] to [..., out], or to this rank's part of the tokens."""
        output: Tensor = _Linear.apply(hidden.flatten(0, -2), self.weight, None, None)
        if self._size > 1:
            output = _ScatterTokens.apply(self._size, output)
        output = output + self.bias
        return output if self._size > 1 else output.unflatten(0, hidden.shape[:-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gathered: Tensor | None,
    ) -> Tensor:
        context.save_for_backward(hidden, weight)
        context.has_bias, context.gathered = bias is not None, gathered
        output = (hidden if gathered is None else gathered) @ weight.t()
        return output if bias is None else output + bias

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight = context.saved_tensors
        entering = gradient @ weight
        whole = hidden
        if context.gathered is not None:
            whole = context.gathered
            share = torch.empty_like(hidden)
        of_weight = gradient.contiguous().t() @ whole
        of_bias = gradient.sum(dim=0) if context.has_bias else None
        return share if context.gathered is not None else entering, of_weight, of_bias, None


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
