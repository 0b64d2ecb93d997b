"""Linear layers of 8-bit products: their error, their sums, what stays as it is."""

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ernie_vilg.model.block import Block
from ernie_vilg.model.fp8 import cast, scale_of
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers
from ernie_vilg.model.linear import IS_FP8, SUMS, Linear
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine.build import mark_fp8_weights
from tests.model.tiny import tiny_config, tiny_pairs

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CPU = torch.device("cpu")
E4M3_ERROR, E5M2_ERROR = 2.0**-4, 2.0**-3
"""Largest relative errors of rounding to 3 and 2 bits of mantissa. Errors of the factors of a long
sum are independent, so a product's relative error is at most the root of their squares' sum."""
FORWARD_ERROR = (E4M3_ERROR**2 + E4M3_ERROR**2) ** 0.5
BACKWARD_ERROR = (E5M2_ERROR**2 + E4M3_ERROR**2) ** 0.5
SMALLEST_ERROR = 0.01
"""A smaller error than any product of 8-bit factors has; bfloat16 has at most 2 ** -8."""


def fp8_layer(num_inputs: int = 64, num_outputs: int = 48) -> Linear:
    generator = torch.Generator().manual_seed(1)
    layer = Linear(num_inputs, num_outputs, dtype=torch.bfloat16)
    with torch.no_grad():
        # A scale far from 1: a product without its scales would be wrong by thousands.
        layer.weight.copy_(torch.randn(num_outputs, num_inputs, generator=generator) / 4096)
        layer.bias.copy_(torch.randn(num_outputs, generator=generator) / 4096)
    setattr(layer.weight, IS_FP8, True)
    return layer


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 4, 16, 64, generator=generator)
    return hidden.bfloat16().requires_grad_()


def gradient_of_outputs() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(2, 4, 16, 48, generator=generator) * 1e-6).bfloat16()


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float(((found.double() - exact).norm() / exact.norm()).detach())


def test_the_forward_product_has_the_error_of_e4m3() -> None:
    layer, hidden = fp8_layer(), inputs()

    output = layer(hidden)

    exact = hidden.double() @ layer.weight.double().t()
    assert output.dtype == torch.bfloat16
    assert SMALLEST_ERROR < relative_error(output - layer.bias, exact) < FORWARD_ERROR


def test_the_gradient_of_the_input_has_the_error_of_e5m2() -> None:
    layer, hidden, gradient = fp8_layer(), inputs(), gradient_of_outputs()

    layer(hidden).backward(gradient)

    assert hidden.grad is not None
    exact = gradient.double() @ layer.weight.double()
    assert SMALLEST_ERROR < relative_error(hidden.grad, exact) < BACKWARD_ERROR


def test_gradients_keep_a_range_that_e4m3_would_flush_to_zero() -> None:
    layer, hidden = fp8_layer(), inputs()
    gradient = torch.full((2, 4, 16, 48), 2.0**-20, dtype=torch.bfloat16)
    gradient[0, 0, 0] = 1.0  # e4m3 spans 2 ** 18, e5m2 2 ** 32

    layer(hidden).backward(gradient)

    assert hidden.grad is not None
    small = hidden.grad[1].double(), gradient[1].double() @ layer.weight.double()
    assert relative_error(*small) < BACKWARD_ERROR


@pytest.mark.parametrize("has_sums", [False, True])
def test_the_gradient_of_the_weight_has_the_error_of_e5m2(has_sums: bool) -> None:
    layer, hidden, gradient = fp8_layer(), inputs(), gradient_of_outputs()
    sums = torch.zeros(48, 64)
    if has_sums:
        setattr(layer.weight, SUMS, sums)

    layer(hidden).backward(gradient)

    found = sums if has_sums else layer.weight.grad
    assert found is not None
    exact = gradient.double().flatten(0, -2).t() @ hidden.double().flatten(0, -2)
    assert SMALLEST_ERROR < relative_error(found, exact) < BACKWARD_ERROR


def test_the_gradient_of_the_bias_is_that_of_the_plain_layer() -> None:
    layer, gradient = fp8_layer(), gradient_of_outputs()

    layer(inputs()).backward(gradient)

    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad, gradient.flatten(0, -2).sum(dim=0))


def test_sums_grow_by_each_micro_batch_and_autograd_gets_no_gradient() -> None:
    layer, sums = fp8_layer(), torch.zeros(48, 64)
    setattr(layer.weight, SUMS, sums)

    layer(inputs()).backward(gradient_of_outputs())
    once = sums.clone()
    layer(inputs()).backward(gradient_of_outputs())

    assert once.norm() > 0
    assert torch.equal(sums, once + once)
    assert layer.weight.grad is None


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1.0, 1e30])
def test_the_largest_magnitude_becomes_the_largest_value(
    kind: torch.dtype, magnitude: float
) -> None:
    tensor = torch.tensor([[0.5, -1.0, 0.0]]) * magnitude

    values = cast(tensor, scale_of(tensor, kind), kind).float()

    assert values.tolist() == [[torch.finfo(kind).max / 2, -torch.finfo(kind).max, 0.0]]


def test_a_tensor_of_zeros_gives_zeros() -> None:
    layer = fp8_layer()

    output = layer(torch.zeros(16, 64, dtype=torch.bfloat16))

    assert torch.equal(output, layer.bias.expand(16, -1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_makes_the_whole_product_not_finite(value: float) -> None:
    hidden = inputs().detach()
    hidden[0, 0, 0, 0] = value

    assert not fp8_layer()(hidden).isfinite().any()


def test_only_matrices_of_inner_blocks_are_marked() -> None:
    config = tiny_config(num_layers=4)
    model = build_transformer(config)

    mark_fp8_weights(model, config)

    marked = {name for name, weight in model.named_parameters() if getattr(weight, IS_FP8, False)}
    matrices = ("attention.query_key_value", "attention.output", "feed_forward.up",
                "feed_forward.down")  # fmt: skip
    assert marked == {f"{index}.{matrix}.weight" for index in (2, 3) for matrix in matrices}


def blocks(checkpointing: str, device: torch.device = CPU) -> nn.Sequential:
    """Return a model of four blocks in bfloat16, the inner two with 8-bit products and sums."""
    config = tiny_config(num_layers=4)
    layers = ParallelLayers(**{**vars(SINGLE_DEVICE), "activation_checkpointing": checkpointing})
    model = build_transformer(config, layers)
    initialize(model.named_parameters(), config, seed=1)
    model.to(device, torch.bfloat16)
    mark_fp8_weights(model, config)
    for weight in model.parameters():
        if getattr(weight, IS_FP8, False):
            setattr(weight, SUMS, torch.zeros(weight.shape, device=device))
    return model


def gradients_of(model: nn.Sequential) -> list[Tensor]:
    config = tiny_config(num_layers=4)
    text, codes = tiny_pairs(config)
    device = next(model.parameters()).device
    output = model((text.repeat(8, 1).to(device), codes.repeat(8, 1).to(device)))
    (output.image_logits.float().square().mean() + output.text_logits.float().mean()).backward()
    found = [getattr(weight, SUMS, weight.grad) for weight in model.parameters()]
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient(checkpointing: str) -> None:
    plain, recomputing = gradients_of(blocks("none")), gradients_of(blocks(checkpointing))

    assert len(plain) == len(recomputing)
    for one, other in zip(plain, recomputing, strict=True):
        assert one.norm() > 0
        assert torch.equal(one, other)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_compiled_block_has_one_graph_and_adds_to_the_sums(checkpointing: str) -> None:
    plain, compiled = blocks(checkpointing), blocks(checkpointing)
    for layer in compiled:
        if isinstance(layer, Block):
            layer.compile(fullgraph=True, dynamic=False, backend="aot_eager")

    for one, other in zip(gradients_of(plain), gradients_of(compiled), strict=True):
        # Recomputed in another order, bfloat16 rounds differently.
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-5)

    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # one of the outer blocks, one of the inner


@pytest.fixture
def fp8_gpu() -> torch.device:
    """A GPU that multiplies 8-bit floats."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU of compute capability 8.9 or above")
    return torch.device("cuda")


@pytest.mark.gpu
def test_a_gpu_computes_the_three_products_of_the_cpu(fp8_gpu: torch.device) -> None:
    results = []
    for device in (torch.device("cpu"), fp8_gpu):
        layer, sums = fp8_layer().to(device), torch.zeros(48, 64, device=device)
        setattr(layer.weight, IS_FP8, True)  # a moved layer may have another parameter
        setattr(layer.weight, SUMS, sums)
        hidden = inputs().detach().to(device).requires_grad_()
        output = layer(hidden)
        output.backward(gradient_of_outputs().to(device))
        assert hidden.grad is not None
        results.append([output.detach(), hidden.grad, sums])

    for on_cpu, on_gpu in zip(*results, strict=True):
        # Results are rounded to 2 ** -8, and fast sums of the forward product to about as much.
        assert relative_error(on_gpu.cpu(), on_cpu.double()) < 2.0**-6


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_compiled_blocks_on_a_gpu_have_the_gradients_of_plain_ones(
    fp8_gpu: torch.device, checkpointing: str
) -> None:
    plain, compiled = (blocks(checkpointing, fp8_gpu) for _ in range(2))
    for layer in compiled:
        if isinstance(layer, Block):
            layer.attention.block_sparse.build(fp8_gpu)
            layer.compile(fullgraph=True, dynamic=False)

    for one, other in zip(gradients_of(plain), gradients_of(compiled), strict=True):
        # Both round bfloat16 in another order, so their 8-bit errors differ, block after block.
        assert relative_error(other, one.double()) < 3 * BACKWARD_ERROR
