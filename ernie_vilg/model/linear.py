"""Linear layers that add their weight's gradient to float32 sums where it is made.

A step's gradient is a sum over micro-batches. Autograd would write each micro-batch's gradient of a
weight in the weight's own precision, for somebody to convert and add: 26 bytes of memory traffic
per parameter and micro-batch. If a weight has an attribute `gradient_sums`, the product that makes
the gradient adds to it instead, which reads and writes 8 bytes, and autograd sees no gradient.

The engine attaches the sums; without them the layers
are torch's own. The addition is an operator of its own, so that torch.compile keeps it in place.

Source: the fused weight gradient of Megatron-LM (gradient accumulation fusion).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUMS = "gradient_sums"
"""Name of a weight's attribute with the float32 sums of its gradient, of the weight's shape."""


class Linear(nn.Linear):
    """torch's linear layer, which obeys `gradient_sums`."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map float [..., in] to [..., out]."""
        return linear(hidden, self.weight, self.bias)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `hidden @ weight.T + bias`.

    Args:
        hidden: float [..., in].
        weight: float [out, in]; its gradient goes to its `gradient_sums` if it has any.
        bias: float [out].
    """
    sums: Tensor | None = getattr(weight, SUMS, None)
    if sums is None or not torch.is_grad_enabled():
        return F.linear(hidden, weight, bias)
    output: Tensor = _SummedLinear.apply(hidden, weight, bias, sums)
    return output


class _SummedLinear(torch.autograd.Function):
    """A linear layer whose weight gets no gradient from autograd."""

    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sums: Tensor,
    ) -> Tensor:
        context.save_for_backward(hidden, weight)
        context.sums, context.has_bias = sums, bias is not None
        return F.linear(hidden, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = context.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        add_weight_gradient(context.sums, gradient, hidden.flatten(0, -2))
        of_hidden = (gradient @ weight).view(hidden.shape) if context.needs_input_grad[0] else None
        of_bias = gradient.sum(dim=0) if context.has_bias else None
        return of_hidden, None, of_bias, None


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
