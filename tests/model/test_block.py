"""Gradient scaling keeps small gradients alive in float16, and changes nothing in float32."""

import torch
from torch import Tensor, nn

from ernie_vilg.model.block import Branch
from ernie_vilg.model.initialization import is_in_block
from ernie_vilg.model.layers import SINGLE_DEVICE
from tests.model.tiny import tiny_config, tiny_model, tiny_pairs


def gradients_of(model: nn.Sequential, loss_factor: float = 1.0) -> dict[str, Tensor]:
    output = model(tiny_pairs())
    loss = output.image_logits.float().square().mean() * loss_factor
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def test_a_power_of_two_scales_the_gradients_of_blocks_exactly() -> None:
    scaled = gradients_of(tiny_model(tiny_config(block_gradient_scale=1024.0)))
    plain = gradients_of(tiny_model())

    for name, gradient in plain.items():
        if gradient is not None:
            factor = 1024 if is_in_block(name) else 1
            assert scaled[name].equal(gradient * factor), name


def test_in_float16_gradients_too_small_for_it_survive_within_a_branch() -> None:
    hidden = torch.randn(4, 16, dtype=torch.float16)
    gradients = {}
    for scale in (1.0, 4096.0):
        config = tiny_config(block_gradient_scale=scale)
        branch = Branch(config, SINGLE_DEVICE).half()
        weight = torch.ones(16, dtype=torch.float16, requires_grad=True)
        output = branch(hidden, lambda normed, weight=weight: normed * weight * 1e-5)
        # 1e-3 can be written in float16, 1e-3 * 1e-5 cannot.
        output.backward(torch.full_like(output, 1e-3))
        gradients[scale] = weight.grad.float() / scale

    with torch.no_grad():
        expected = branch.norm(hidden).float().sum(0) * 1e-8
    assert not gradients[1.0].any()
    torch.testing.assert_close(gradients[4096.0], expected, rtol=0.1, atol=2e-10)
