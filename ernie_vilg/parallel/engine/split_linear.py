"""Linear layers that hold `1 / size` of their weights, in eager mode and in compiled graphs.

A column layer splits output features, a row layer input features; a pair of them needs one sum over
the ranks. With sequence parallelism tokens are split between the pairs: a column layer gathers them
and a row layer scatters its sums. In the backward pass a column layer starts the collective of its
input's gradient, makes its weight's gradient meanwhile, and waits then.

Collectives are torch's functional ones, which torch.compile keeps in its graph, in this order.

Source: Megatron-LM (arXiv:1909.08053, section 3) and Korthikanti et al. 2022 (arXiv:2205.05198).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ernie_vilg.model.linear import (
    IS_FP8,
    SUMS,
    Linear,
    gradient_of_input,
    gradient_of_weight,
    linear,
    multiply,
)


class Ranks(NamedTuple):
    """The group of a layer, and how it treats tokens; constants of a compiled graph."""

    name: str
    """torch's name of the process group."""
    size: int
    """Number of ranks."""
    split_tokens: bool
    """Whether a rank holds `1 / size` of the tokens outside the layers (sequence parallelism)."""


def ranks_of(group: dist.ProcessGroup, *, split_tokens: bool) -> Ranks:
    """Return the value that layers over a process group take."""
    return Ranks(group.group_name, group.size(), split_tokens)


class ColumnLinear(Linear):
    """Maps [..., in] to [..., out / size], or this rank's tokens to [tokens, out / size]."""

    def __init__(self, ranks: Ranks, inputs: int, outputs: int) -> None:
        """Create the layer; `outputs` counts the features of all ranks."""
        super().__init__(inputs, outputs // ranks.size)
        self.ranks = ranks

    def forward(self, hidden: Tensor) -> Tensor:
        """Map the input, which all ranks hold alike unless tokens are split."""
        sums = getattr(self.weight, SUMS, None) if torch.is_grad_enabled() else None
        is_fp8 = getattr(self.weight, IS_FP8, False)
        output: Tensor = _ColumnLinear.apply(
            hidden, self.weight, self.bias, sums, self.ranks, is_fp8
        )
        return self.adapted(hidden, output, partial(_enter, self.ranks))


class RowLinear(Linear):
    """Maps [..., in / size] to [..., out], or to this rank's tokens."""

    def __init__(self, ranks: Ranks, inputs: int, outputs: int) -> None:
        """Create the layer; `inputs` counts the features of all ranks."""
        super().__init__(inputs // ranks.size, outputs)
        self.ranks = ranks

    def forward(self, hidden: Tensor) -> Tensor:
        """Map this rank's features; the ranks' products are summed, then the bias is added."""
        # Both products are sums over features, so the ranks' sums contain the adapter's output.
        product = self.adapted(hidden, linear(hidden, self.weight))
        if self.ranks.split_tokens:
            product = product.flatten(0, -2)
        summed: Tensor = _Sum.apply(product, self.ranks)
        return summed + self.bias


class _ColumnLinear(torch.autograd.Function):
    """A product whose backward pass sums the input's gradient over the ranks."""

    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        sums: Tensor | None,
        ranks: Ranks,
        is_fp8: bool,
    ) -> Tensor:
        # Split tokens are kept as they came, and gathered again: 1 / size of the memory.
        context.save_for_backward(hidden, weight)
        context.sums, context.ranks, context.is_fp8 = sums, ranks, is_fp8
        return multiply(_start_gathering(hidden, ranks)(), weight, bias, is_fp8=is_fp8)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = context.saved_tensors
        ranks, is_fp8 = context.ranks, context.is_fp8
        gradient = gradients[0].flatten(0, -2)
        needs_hidden, needs_weight, needs_bias, *_ = context.needs_input_grad
        of_hidden, of_weight = None, None
        if needs_weight:
            gathered = _start_gathering(_after(hidden, gradient, ranks), ranks)
        if needs_hidden:  # the same on all ranks
            summing = _start_summing(gradient_of_input(gradient, weight, is_fp8=is_fp8), ranks)
        if needs_weight:
            of_weight = gradient_of_weight(
                gradient, gathered().flatten(0, -2), context.sums, is_fp8=is_fp8
            )
        of_bias = gradient.sum(dim=0) if needs_bias else None
        if needs_hidden:
            of_hidden = summing().view(hidden.shape)
        return of_hidden, of_weight, of_bias, None, None, None


class _Sum(torch.autograd.Function):
    """Sums the ranks' products; all ranks have the sum's gradient, or that of their tokens."""

    @staticmethod
    def forward(context: Any, product: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return _start_summing(product, ranks)()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _start_gathering(gradients[0], context.ranks)(), None


def split_tokens(ranks: Ranks, index: int, hidden: Tensor) -> Tensor:
    """Return rank `index`'s tokens, [tokens / size, hidden], of what all ranks hold alike."""
    tokens: Tensor = _Split.apply(hidden.flatten(0, -2), ranks, index)
    return tokens


def join_tokens(ranks: Ranks, index: int, tokens: Tensor) -> Tensor:
    """Gather the tokens of all ranks, to [tokens, hidden]; `index` is this rank's.

    All ranks must have the whole gradient of the result: they compute alike with it, or sum its
    gradient themselves, as column layers do.
    """
    joined: Tensor = _Join.apply(tokens, ranks, index)
    return joined


def _enter(ranks: Ranks, tokens: Tensor) -> Tensor:
    """Gather what ranks have of split tokens; each rank has a part of the result's gradient."""
    entered: Tensor = _Enter.apply(tokens, ranks)
    return entered


class _Enter(torch.autograd.Function):
    """Its backward pass sums the gradient over the ranks, as a column layer's does."""

    @staticmethod
    def forward(context: Any, tokens: Tensor, ranks: Ranks) -> Tensor:
        context.ranks, context.shape = ranks, tokens.shape
        gathered = _start_gathering(tokens, ranks)()
        return gathered if ranks.split_tokens else gathered.view_as(tokens)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _start_summing(gradients[0], context.ranks)().view(context.shape), None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, ranks: Ranks, index: int) -> Tensor:
        context.ranks = ranks
        # Not a view: all tokens would live as long as this rank's.
        return hidden.chunk(ranks.size)[index].clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _start_gathering(gradients[0], context.ranks)(), None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tokens: Tensor, ranks: Ranks, index: int) -> Tensor:
        context.ranks, context.index = ranks, index
        return _start_gathering(tokens, ranks)()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].chunk(context.ranks.size)[context.index].clone(), None, None


def _after(tokens: Tensor, gradient: Tensor, ranks: Ranks) -> Tensor:
    """Return the tokens; a compiler cannot compute the result before the gradient.

    Otherwise it would merge the backward pass's gathering with the forward pass's, and keep all
    tokens until the backward pass.
    """
    if not ranks.split_tokens or not torch.compiler.is_compiling():
        return tokens
    # A gradient that is not a number makes the weight's gradient so anyway. A zero that is added
    # would be no dependency: Inductor takes 0 * x for 0.
    return tokens.masked_fill(gradient[:1, :1].isnan(), float("nan"))


def _start_gathering(tokens: Tensor, ranks: Ranks) -> Callable[[], Tensor]:
    """Start to gather all ranks' tokens, if they are split; return a function that waits."""
    if not ranks.split_tokens:
        return lambda: tokens
    started = torch.ops._c10d_functional.all_gather_into_tensor.default(
        tokens.contiguous(), ranks.size, ranks.name
    )
    return lambda: torch.ops._c10d_functional.wait_tensor.default(started)


def _start_summing(products: Tensor, ranks: Ranks) -> Callable[[], Tensor]:
    """Start to sum over the ranks, to all tokens or this rank's; return a function that waits."""
    if ranks.split_tokens:
        started = torch.ops._c10d_functional.reduce_scatter_tensor.default(
            products.contiguous(), "sum", ranks.size, ranks.name
        )
    else:
        started = torch.ops._c10d_functional.all_reduce.default(
            products.contiguous(), "sum", ranks.name
        )
    return lambda: torch.ops._c10d_functional.wait_tensor.default(started)
