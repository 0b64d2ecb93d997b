"""A linear layer adds its weight's gradient to float32 sums, and everything else is torch's."""

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ernie_vilg.model.block import Block
from ernie_vilg.model.linear import SUMS, Linear, add_weight_gradient
from tests.model.test_reference import sparse_config
from tests.model.tiny import tiny_model, tiny_pairs

PASSES = 3


def layer_of(dtype: torch.dtype = torch.float32) -> Linear:
    torch.manual_seed(0)
    return Linear(6, 10).to(dtype)


def passes(layer: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the inputs of some passes after a backward pass of each."""
    torch.manual_seed(1)
    inputs = [torch.randn(2, 3, 6, dtype=dtype, requires_grad=True) for _ in range(PASSES)]
    for hidden in inputs:
        layer(hidden).square().sum().backward()
    return inputs


def test_without_sums_it_is_torchs() -> None:
    layer, hidden = layer_of(), torch.randn(2, 6)

    assert layer(hidden).equal(F.linear(hidden, layer.weight, layer.bias))
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None


def test_the_sums_get_the_weights_gradient_and_autograd_the_rest() -> None:
    plain, summed = layer_of(), layer_of()
    setattr(summed.weight, SUMS, torch.zeros(10, 6))

    expected, inputs = passes(plain), passes(summed)

    assert summed.weight.grad is None
    torch.testing.assert_close(getattr(summed.weight, SUMS), plain.weight.grad)
    torch.testing.assert_close(summed.bias.grad, plain.bias.grad)
    for one, other in zip(inputs, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    plain, summed = layer_of(torch.bfloat16), layer_of(torch.bfloat16)
    setattr(summed.weight, SUMS, torch.zeros(10, 6))
    sums = torch.zeros(10, 6)

    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        sums.add_(weight.grad)
        weight.grad = None

    plain.weight.register_post_accumulate_grad_hook(add)
    passes(plain, torch.bfloat16)
    passes(summed, torch.bfloat16)

    # A CPU rounds each product to bfloat16, as autograd does.
    assert getattr(summed.weight, SUMS).equal(sums)


def test_an_input_without_a_gradient_gets_none() -> None:
    layer = layer_of()
    setattr(layer.weight, SUMS, torch.zeros(10, 6))

    layer(torch.ones(2, 6)).sum().backward()

    assert getattr(layer.weight, SUMS).equal(torch.full((10, 6), 2.0))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
def test_compiled_blocks_add_to_parts_of_one_flat_tensor(backend: str) -> None:
    config = sparse_config(image_grid_size=2, qk_norm=True)
    plain, compiled = tiny_model(config), tiny_model(config)
    layers = [layer for layer in compiled.modules() if isinstance(layer, Linear)]
    flat = torch.zeros(sum(layer.weight.numel() for layer in layers))
    parts = flat.split([layer.weight.numel() for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        setattr(layer.weight, SUMS, part.view(layer.weight.shape))
    for layer in compiled:
        if isinstance(layer, Block):
            layer.compile(fullgraph=True, dynamic=False, backend=backend)

    for model in (plain, compiled) * PASSES:
        output = model(tiny_pairs(config))
        (output.image_logits.square().mean() + output.text_logits.square().mean()).backward()

    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for (name, one), other in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        gradient = getattr(one, SUMS, one.grad)
        torch.testing.assert_close(gradient, other.grad, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"),
    [(64, 32, 96), (1, 8, 8), (7, 5, 3), (33, 1, 17), (33, 17, 1), (513, 255, 1021)],
)
def test_a_gpu_adds_bfloat16_products_to_float32_sums(
    tokens: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    # A part of a flat tensor starts at any multiple of 4 bytes.
    flat = torch.randn(outputs * inputs + 1, device="cuda")
    sums = flat[1:].view(outputs, inputs)
    gradient = torch.randn(tokens, outputs, device="cuda").bfloat16()
    hidden = torch.randn(tokens, inputs, device="cuda").bfloat16()
    expected = sums.double() + gradient.double().t() @ hidden.double()
    address = sums.data_ptr()

    for factor in (gradient, gradient.t().contiguous().t()):
        before = sums.clone()
        add_weight_gradient(sums, factor, hidden)
        # bfloat16 factors are exact in float32; only the order of additions differs.
        torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-4)
        sums.copy_(before)

    assert sums.data_ptr() == address


@pytest.mark.gpu
def test_a_gpu_makes_no_copy_of_the_sums() -> None:
    sums = torch.zeros(1024, 2048, device="cuda")
    gradient = torch.randn(256, 1024, device="cuda").bfloat16()
    hidden = torch.randn(256, 2048, device="cuda").bfloat16()
    add_weight_gradient(sums, gradient, hidden)  # cuBLAS's workspace
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    add_weight_gradient(sums, gradient, hidden)

    assert torch.cuda.max_memory_allocated() == before
