"""Layers of the image tokenizer."""

import pytest
import torch
from torch import nn

from ernie_vilg.vqgan.layers import GroupNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_and_its_gradients_are_torch_s_and_keep_channels_last(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    ours, theirs = GroupNorm(4, 8, eps=1e-6), nn.GroupNorm(4, 8, eps=1e-6)
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, 0.5, 0.5 + 1e-3)
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(2, 8, 4, 4)
    results = []
    for norm in (ours.to(dtype), theirs):
        leaf = inputs.to(norm.weight.dtype).requires_grad_()
        output = norm(leaf)
        output.backward(gradient.to(output.dtype))
        results.append((output, leaf.grad, norm.weight.grad, norm.bias.grad))

    assert results[0][0].is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2  # eight bits of mantissa
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_group_norm_trains_channels_first_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    plain = nn.GroupNorm.forward

    def spy(norm: nn.GroupNorm, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.is_contiguous())
        return plain(norm, inputs)

    monkeypatch.setattr(nn.GroupNorm, "forward", spy)
    norm = GroupNorm(4, 8)
    inputs = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)

    norm(inputs.clone().requires_grad_())
    with torch.no_grad():
        norm(inputs)

    assert seen == [True, False]  # in use the kernel for channels last is the faster one
