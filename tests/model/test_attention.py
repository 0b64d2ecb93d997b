"""Both ways to compute attention agree, gradients included."""

import pytest
import torch

from ernie_vilg.model import attention
from ernie_vilg.model.attention_mask import both_masks
from tests.model.tiny import tiny_config


def test_plain_products_equal_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mask = both_masks(tiny_config(text_length=3))
    tensors = [torch.randn(2, 5, 2, 7, 8, requires_grad=True) for _ in range(3)]

    plain = attention.attend(*tensors, mask)
    plain_gradients = torch.autograd.grad(plain.square().sum(), tensors)
    monkeypatch.setattr(attention, "PLAIN_ATTENTION_MAX_SEQ", 0)
    fused = attention.attend(*tensors, mask)
    fused_gradients = torch.autograd.grad(fused.square().sum(), tensors)

    torch.testing.assert_close(plain, fused)
    torch.testing.assert_close(plain_gradients, fused_gradients)


def test_pb_relax_changes_nothing_but_the_size_of_the_products() -> None:
    torch.manual_seed(0)
    mask = both_masks(tiny_config(text_length=3))
    tensors = [torch.randn(2, 5, 2, 7, 8) for _ in range(3)]

    torch.testing.assert_close(
        attention.attend(*tensors, mask, pb_relax=32.0), attention.attend(*tensors, mask)
    )


def test_pb_relax_keeps_large_products_finite_in_float16() -> None:
    mask = both_masks(tiny_config(text_length=3))
    large = torch.full((2, 1, 1, 7, 8), 150.0, dtype=torch.float16)  # 8 * 150^2 > 65504

    assert not attention.attend(large * 8**0.5, large, large, mask).isfinite().all()
    assert attention.attend(large * 8**0.5, large, large, mask, pb_relax=32.0).isfinite().all()
