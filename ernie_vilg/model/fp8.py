"""Linear layers whose three products multiply 8-bit floats.

A tensor is scaled by the largest magnitude that it has now (current scaling, one scale per tensor),
then rounded to 8 bits. Inputs and weights take e4m3, with 3 bits of mantissa; gradients of outputs
take e5m2, with 2 bits and the wider range that they need. Products are summed in float32 and
returned in the input's type. The master weights, biases and everything outside the products keep
their precision. torch.compile fuses the casts with their neighbours.

Under tensor parallelism a rank scales by its own shard: no collective is needed, and the results of
another layout differ within the rounding of 8 bits.

A weight is cast in every pass, which moves 8 bytes per parameter and micro-batch, 2 % of a pass of
the 10B model at 8 pairs. Casts kept for a whole step would save most of it, and would take 2 bytes
per parameter and a cache that each update invalidates.

Source: FP8 formats, Micikevicius et al. 2022 (arXiv:2209.05433); the choice of formats and of fast
accumulation in the forward product only is that of torchao's tensorwise recipe.
"""

from typing import Any

import torch
from torch import Tensor

SMALLEST_MAGNITUDE = 1e-30
"""Smallest largest magnitude that is scaled up; below it float32 cannot hold the scale."""

_FORWARD, _BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def fp8_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, sums: Tensor | None) -> Tensor:
    """Return `hidden @ weight.T + bias`, multiplied in 8 bits.

    Args:
        hidden: bfloat16 [..., in].
        weight: bfloat16 [out, in].
        bias: bfloat16 [out].
        sums: float32 [out, in], to which the backward pass adds the weight's gradient; None leaves
            the gradient to autograd.
    """
    output: Tensor = _Fp8Linear.apply(hidden, weight, bias, sums)
    return output


class _Fp8Linear(torch.autograd.Function):
    """A linear layer with 8-bit products, forward and backward."""

    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, sums: Tensor | None
    ) -> Tensor:
        rows = hidden.flatten(0, -2)
        hidden_scale, weight_scale = scale_of(rows, _FORWARD), scale_of(weight, _FORWARD)
        # The wide tensors are kept, not their casts: activation checkpointing recomputes them, and
        # the backward pass needs the casts in another order.
        context.save_for_backward(hidden, weight, hidden_scale, weight_scale)
        context.sums, context.has_bias = sums, bias is not None
        output = product(
            (cast(rows, hidden_scale, _FORWARD), hidden_scale),
            (cast(weight, weight_scale, _FORWARD), weight_scale),
            hidden.dtype,
            bias=bias,
            is_fast=True,
        )
        return output.unflatten(0, hidden.shape[:-1])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, hidden_scale, weight_scale = context.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        scale = scale_of(gradient, _BACKWARD)
        of_hidden = None
        if context.needs_input_grad[0]:
            rows = product(
                (cast(gradient, scale, _BACKWARD), scale),
                (cast(weight, weight_scale, _FORWARD).t().contiguous(), weight_scale),
                hidden.dtype,
            )
            of_hidden = rows.unflatten(0, hidden.shape[:-1])
        # Both with the tokens last, in memory too: the product sums over the last dimension.
        left = cast(gradient, scale, _BACKWARD).t().contiguous()
        right = cast(hidden.flatten(0, -2), hidden_scale, _FORWARD).t().contiguous()
        of_weight = None
        if context.sums is not None:
            add_fp8_weight_gradient(context.sums, left, scale, right, hidden_scale)
        elif context.needs_input_grad[1]:
            of_weight = product((left, scale), (right, hidden_scale), weight.dtype)
        of_bias = gradient.sum(dim=0) if context.has_bias else None
        return of_hidden, of_weight, of_bias, None


def scale_of(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Return the number by which 8-bit values must be multiplied again, float32 [].

    The largest magnitude of `tensor`, divided by it, is the largest value of the 8-bit type. NaN
    and infinity make it, and so the products, not finite.
    """
    largest = tensor.abs().amax().float()
    return largest.clamp(min=SMALLEST_MAGNITUDE) / torch.finfo(kind).max


def cast(tensor: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """Return `tensor / scale`, rounded to an 8-bit type."""
    return (tensor.float() / scale).to(kind)


def product(
    left: tuple[Tensor, Tensor],
    right: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    is_fast: bool = False,
) -> Tensor:
    """Return `left @ right.T + bias`.

    Args:
        left: 8-bit values [rows, inner] and their scale, float32 [].
        right: 8-bit values [columns, inner] and their scale, float32 [].
        dtype: type of the result.
        bias: float [columns], of type `dtype`.
        is_fast: whether the GPU may sum in fewer bits than float32 has.

    Returns:
        float [rows, columns].
    """
    (left_values, left_scale), (right_values, right_scale) = left, right
    return torch._scaled_mm(
        left_values,
        right_values.t(),
        left_scale,
        right_scale,
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=is_fast,
    )


@torch.library.custom_op("ernie_vilg::add_fp8_weight_gradient", mutates_args=("sums",))
def add_fp8_weight_gradient(
    sums: Tensor, gradient: Tensor, gradient_scale: Tensor, hidden: Tensor, hidden_scale: Tensor
) -> None:
    """Add `gradient @ hidden.T` to the sums, in place.

    The product is rounded to bfloat16 before it is added: its error is far below that of its 8-bit
    factors, and it moves 12 bytes per parameter instead of 16.

    Args:
        sums: float32 [out, in].
        gradient: gradient of the layer's output, 8-bit [out, tokens].
        gradient_scale: its scale, float32 [].
        hidden: the layer's input, 8-bit [in, tokens].
        hidden_scale: its scale, float32 [].
    """
    sums.add_(product((gradient, gradient_scale), (hidden, hidden_scale), torch.bfloat16))


@add_fp8_weight_gradient.register_fake
def _(
    sums: Tensor, gradient: Tensor, gradient_scale: Tensor, hidden: Tensor, hidden_scale: Tensor
) -> None:
    """Change nothing while torch.compile traces."""
