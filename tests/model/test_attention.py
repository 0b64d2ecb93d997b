"""Both ways to compute attention give the same, gradients included."""

import pytest
import torch

from ernie_vilg.model import attention
from ernie_vilg.model.attention_mask import both_masks


def test_plain_products_equal_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mask = both_masks(text_length=3, num_image_tokens=4)
    tensors = [torch.randn(2, 5, 2, 7, 8, requires_grad=True) for _ in range(3)]

    plain = attention.attend(*tensors, mask)
    plain_gradients = torch.autograd.grad(plain.square().sum(), tensors)
    monkeypatch.setattr(attention, "PLAIN_ATTENTION_MAX_SEQ", 0)
    fused = attention.attend(*tensors, mask)
    fused_gradients = torch.autograd.grad(fused.square().sum(), tensors)

    torch.testing.assert_close(plain, fused)
    torch.testing.assert_close(plain_gradients, fused_gradients)
