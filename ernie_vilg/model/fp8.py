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

import torch
from torch import Tensor

SMALLEST_MAGNITUDE = 1e-30
"""Smallest largest magnitude that is scaled up; below it float32 cannot hold the scale."""

Scaled = tuple[Tensor, Tensor]
"""8-bit values, and the float32 [] by which they are to be multiplied."""

_FORWARD, _BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `hidden @ weight.T + bias`, the forward pass of a linear layer.

    Args:
        hidden: bfloat16 [..., in].
        weight: bfloat16 [out, in].
        bias: bfloat16 [out].
    """
    rows = _scaled(hidden.flatten(0, -2), _FORWARD)
    output = product(rows, _scaled(weight, _FORWARD), hidden.dtype, bias=bias, is_fast=True)
    return output.unflatten(0, hidden.shape[:-1])


def gradient_of_input(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return `gradient @ weight`.

    Args:
        gradient: gradient of the layer's output, bfloat16 [tokens, out].
        weight: bfloat16 [out, in].
    """
    return product(
        _scaled(gradient, _BACKWARD), _transposed(*_scaled(weight, _FORWARD)), gradient.dtype
    )


def gradient_of_weight(gradient: Tensor, hidden: Tensor) -> Tensor:
    """Return `gradient.T @ hidden`.

    Args:
        gradient: gradient of the layer's output, bfloat16 [tokens, out].
        hidden: the layer's input, bfloat16 [tokens, in].
    """
    return product(*_weight_factors(gradient, hidden), gradient.dtype)


def add_weight_gradient(sums: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add `gradient.T @ hidden` to the sums, in place.

    The product is rounded to bfloat16 before it is added: its error is far below that of its 8-bit
    factors, and it moves 12 bytes per parameter instead of 16.

    Args:
        sums: float32 [out, in].
        gradient: gradient of the layer's output, bfloat16 [tokens, out].
        hidden: the layer's input, bfloat16 [tokens, in].
    """
    left, right = _weight_factors(gradient, hidden)
    torch.ops.ernie_vilg.add_fp8_weight_gradient(sums, *left, *right)


def _weight_factors(gradient: Tensor, hidden: Tensor) -> tuple[Scaled, Scaled]:
    """Return both factors with the tokens last, in memory too: the product sums over them."""
    return _transposed(*_scaled(gradient, _BACKWARD)), _transposed(*_scaled(hidden, _FORWARD))


def _scaled(tensor: Tensor, kind: torch.dtype) -> Scaled:
    scale = scale_of(tensor, kind)
    return cast(tensor, scale, kind), scale


def _transposed(values: Tensor, scale: Tensor) -> Scaled:
    return values.t().contiguous(), scale


def scale_of(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Return the number by which 8-bit values must be multiplied again, float32 [].

    The largest magnitude of `tensor`, divided by it, is the largest value of the 8-bit type. NaN
    and infinity make it, and so the products, not finite.
    """
    largest = tensor.abs().amax().float()
    return largest.clamp(min=SMALLEST_MAGNITUDE) / torch.finfo(kind).max


def cast(tensor: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """Return `tensor / scale`, rounded to an 8-bit type, contiguous as a GPU's product needs it."""
    return (tensor.float() / scale).to(kind).contiguous()


def product(
    left: Scaled,
    right: Scaled,
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


def _add_product(
    sums: Tensor,
    gradient: Tensor,
    gradient_scale: Tensor,
    hidden: Tensor,
    hidden_scale: Tensor,
) -> None:
    sums.add_(product((gradient, gradient_scale), (hidden, hidden_scale), torch.bfloat16))


# An operator of its own, so that torch.compile keeps the addition in place.
torch.library.define(
    "ernie_vilg::add_fp8_weight_gradient",
    "(Tensor(a!) sums, Tensor gradient, Tensor gradient_scale, Tensor hidden, Tensor hidden_scale) "
    "-> ()",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
torch.library.impl("ernie_vilg::add_fp8_weight_gradient", "default", _add_product)
torch.library.register_fake("ernie_vilg::add_fp8_weight_gradient", lambda *arguments: None)
