"""Linear layers that add their weight's gradient to float32 sums where it is made.

A step's gradient is a sum over micro-batches. Autograd would write each micro-batch's gradient of a
weight in the weight's own precision, for somebody to convert and add: 26 bytes of memory traffic
per parameter and micro-batch. If a weight has an attribute `gradient_sums`, the product that makes
the gradient adds to it instead, which reads and writes 8 bytes, and autograd sees no gradient.

The engine attaches the sums; without them the layers are torch's own. The addition is an operator
of its own, so that torch.compile keeps it in place.

Source: the fused weight gradient of Megatron-LM (gradient accumulation fusion).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.model import fp8

SUMS = "gradient_sums"
"""Name of a weight's attribute with the float32 sums of its gradient, of the weight's shape."""

IS_FP8 = "is_fp8"
"""Name of a weight's attribute that is true if its three products multiply 8-bit floats."""


class Linear(nn.Linear):
    """torch's linear layer, which obeys `gradient_sums` and `is_fp8`, and can have an adapter."""

    lora_a: nn.Module | None
    """First matrix of a low-rank adapter, [..., in] to [..., rank]."""
    lora_b: nn.Module | None
    """Second matrix of a low-rank adapter, [..., rank] to [..., out]."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        """Create the layer as torch does, without an adapter."""
        super().__init__(inputs, outputs, bias, dtype=dtype)
        for name in ("lora_a", "lora_b"):
            self.register_module(name, None)
        self.adapter_scale = 0.0
        """Factor of the adapter's output."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map float [..., in] to [..., out]."""
        return self.adapted(hidden, linear(hidden, self.weight, self.bias))

    def adapted(
        self, hidden: Tensor, output: Tensor, join: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Add the adapter's output to the layer's, if there is an adapter.

        Args:
            hidden: the layer's input.
            output: the layer's output.
            join: called with the product of input and first matrix, float [..., rank].
        """
        if self.lora_a is None or self.lora_b is None:
            return output
        narrow = self.lora_a(hidden) * self.adapter_scale
        added: Tensor = self.lora_b(narrow if join is None else join(narrow))
        return output + added


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `hidden @ weight.T + bias`.

    Args:
        hidden: float [..., in].
        weight: float [out, in]; its gradient goes to its `gradient_sums` if it has any.
        bias: float [out].
    """
    sums: Tensor | None = getattr(weight, SUMS, None) if torch.is_grad_enabled() else None
    is_fp8: bool = getattr(weight, IS_FP8, False)
    if sums is None and not is_fp8:
        return F.linear(hidden, weight, bias)
    output: Tensor = _Linear.apply(hidden, weight, bias, sums, is_fp8)
    return output


class _Linear(torch.autograd.Function):
    """A linear layer of three products that can be 8-bit, and can add to sums."""

    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sums: Tensor | None,
        is_fp8: bool,
    ) -> Tensor:
        context.save_for_backward(hidden, weight)
        context.sums, context.is_fp8 = sums, is_fp8
        return multiply(hidden, weight, bias, is_fp8=is_fp8)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = context.saved_tensors
        gradient, is_fp8 = gradients[0].flatten(0, -2), context.is_fp8
        of_weight, of_hidden = None, None
        if context.needs_input_grad[1]:
            of_weight = gradient_of_weight(
                gradient, hidden.flatten(0, -2), context.sums, is_fp8=is_fp8
            )
        if context.needs_input_grad[0]:
            of_hidden = gradient_of_input(gradient, weight, is_fp8=is_fp8).view(hidden.shape)
        of_bias = gradient.sum(dim=0) if context.needs_input_grad[2] else None
        return of_hidden, of_weight, of_bias, None, None


def multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, is_fp8: bool) -> Tensor:
    """Return `hidden @ weight.T + bias`, without a gradient of its own if `is_fp8`."""
    return fp8.multiply(hidden, weight, bias) if is_fp8 else F.linear(hidden, weight, bias)


def gradient_of_input(gradient: Tensor, weight: Tensor, *, is_fp8: bool) -> Tensor:
    """Return `gradient @ weight`, float [tokens, in]."""
    return fp8.gradient_of_input(gradient, weight) if is_fp8 else gradient @ weight


def gradient_of_weight(
    gradient: Tensor, hidden: Tensor, sums: Tensor | None, *, is_fp8: bool
) -> Tensor | None:
    """Return `gradient.T @ hidden`, float [out, in]; or add it to the sums, and return None.

    Args:
        gradient: gradient of the layer's output, float [tokens, out].
        hidden: the layer's input, float [tokens, in].
        sums: the weight's sums, float32 [out, in]; None if it has none.
        is_fp8: whether the product is 8-bit.
    """
    if sums is None:
        return fp8.gradient_of_weight(gradient, hidden) if is_fp8 else gradient.t() @ hidden
    if is_fp8:
        fp8.add_weight_gradient(sums, gradient, hidden)
    else:
        add_weight_gradient(sums, gradient, hidden)
    return None


def _add_weight_gradient(sums: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    if gradient.dtype == sums.dtype:
        sums.addmm_(gradient.t(), hidden)
    elif gradient.device.type == "cuda":
        # cuBLAS reads and writes float32 sums in one product of bf16 factors, of any shape.
        torch.ops.aten.addmm.dtype_out(sums, gradient.t(), hidden, sums.dtype, out=sums)
    else:  # a CPU has no product with a float32 result of narrower factors
        sums.add_(gradient.t() @ hidden)


# torch.library.custom_op would take 40 us a call, this takes 5.
torch.library.define(
    "ernie_vilg::add_weight_gradient",
    "(Tensor(a!) sums, Tensor gradient, Tensor hidden) -> ()",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("ernie_vilg::add_weight_gradient", "default", _add_weight_gradient)
torch.library.register_fake("ernie_vilg::add_weight_gradient", lambda *arguments: None)


def add_weight_gradient(sums: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add `gradient.T @ hidden` to the sums, in place.

    Args:
        sums: float32 [out, in].
        gradient: gradient of the layer's output, float [tokens, out].
        hidden: the layer's input, float [tokens, in], of the same type as `gradient`.
    """
    torch.ops.ernie_vilg.add_weight_gradient(sums, gradient, hidden)
