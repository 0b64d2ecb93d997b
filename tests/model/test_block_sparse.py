"""Block-sparse attention equals dense attention under the same mask."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.attention.flex_attention as flex_module
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.model import block_sparse
from ernie_vilg.model.attention import attend
from ernie_vilg.model.attention_mask import Pattern, both_masks
from ernie_vilg.model.block import Block
from ernie_vilg.model.block_sparse import (
    BlockSparseAttention,
    attend_visible,
    block_masks,
    transpose_grid,
)
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.layers import SINGLE_DEVICE
from tests.model.tiny import DECODER, tiny_config

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CPU = torch.device("cpu")
END_TO_END = ReconstructorConfig(kind="end_to_end", decoder=DECODER)  # one image slot more


def sparse_config(**changes: Any) -> ModelConfig:
    """Return a model with a grid of 4 x 4, which no pattern covers whole."""
    return tiny_config(
        **{"attention": "sparse", "image_grid_size": 4, "convolution_size": 3, **changes}
    )


def ten_billion(**changes: Any) -> ModelConfig:
    """Return a model with the 10B model's sequence and head width, and few heads."""
    shape = {
        "hidden_size": 128,
        "num_heads": 2,
        "text_length": 64,
        "image_grid_size": 32,
        "convolution_size": 11,
    }
    return sparse_config(**{**shape, **changes})


def random_heads(config: ModelConfig) -> list[Tensor]:
    """Return queries, keys and values of three pairs."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, config.num_heads, config.seq_length, config.head_dim)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


CONFIGS = {
    "rows in raster order": sparse_config(),
    "rows in blocks": sparse_config(row_pattern="block"),
    "one slot more": sparse_config(reconstructor=END_TO_END),
    "PB-relax": sparse_config(pb_relax=8.0),
    "heads wider than the kernel's least": sparse_config(hidden_size=48),
}


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_dense_attention(
    name: str, pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise torch traces even uncompiled code, a second per case.
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    config = CONFIGS[name]
    heads = random_heads(config)

    sparse = BlockSparseAttention(config, pattern, compiled=False)(*heads)

    # Sums have another order, in float32.
    dense = attend(*heads, both_masks(config, pattern), config.pb_relax)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)


def test_turning_the_grid_keeps_text_and_the_slot_after_it() -> None:
    config = tiny_config(text_length=2, image_grid_size=3, reconstructor=END_TO_END)
    slots = torch.arange(12.0)[:, None]

    turned = transpose_grid(slots, config)

    assert turned[:, 0].tolist() == [0, 1, 2, 5, 8, 3, 6, 9, 4, 7, 10, 11]
    assert transpose_grid(turned, config).equal(slots)


def test_columns_are_as_sparse_as_rows() -> None:
    config = ten_billion(row_pattern="block")

    def num_blocks(pattern: Pattern) -> list[int]:
        masks = block_masks(config, pattern, CPU)
        return [int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) for mask in masks]

    # 9 x 9 blocks, of which the text's row or column, 8, the corner, and 8 on the diagonal.
    assert num_blocks(Pattern.COLUMN) == num_blocks(Pattern.ROW) == [17, 17]


def test_more_masks_get_a_kernel_than_torch_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    kernel = torch.compile(attend_visible, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr(block_sparse, "_compiled_attention", lambda: kernel)
    config = sparse_config()
    heads = random_heads(config)

    # Its own limit is 8; training and judging with several shapes takes more.
    with torch._dynamo.config.patch(recompile_limit=1):
        for pattern in (Pattern.ROW, Pattern.COLUMN, Pattern.ROW):
            BlockSparseAttention(config, pattern)(*heads)

    assert counter.frame_count == 2  # one per pattern, for both directions


def test_layers_of_one_pattern_share_a_compiled_graph() -> None:
    class Layer(nn.Module):
        def __init__(self, pattern: Pattern) -> None:
            super().__init__()
            self.attention = BlockSparseAttention(config, pattern)
            self.attention.build(CPU)

        def forward(self, heads: list[Tensor]) -> Tensor:
            return self.attention(*heads)

    config = sparse_config()
    heads = random_heads(config)
    counter = CompileCounter()

    for pattern in (Pattern.ROW, Pattern.COLUMN, Pattern.ROW):
        layer = Layer(pattern)
        layer.compile(fullgraph=True, dynamic=False, backend=counter)
        layer(heads)

    assert counter.frame_count == 2


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize(
    ("config", "precision", "tolerance"),
    [
        pytest.param(sparse_config(), torch.float32, 1e-4, id="small, padded heads"),
        pytest.param(sparse_config(pb_relax=8.0), torch.float32, 1e-4, id="small, PB-relax"),
        pytest.param(ten_billion(), torch.float32, 1e-4, id="10B sequence"),
        pytest.param(ten_billion(reconstructor=END_TO_END), torch.float32, 1e-4, id="1,089 slots"),
        # 8 bits of mantissa, in inputs, probabilities and outputs.
        pytest.param(ten_billion(), torch.bfloat16, 2e-2, id="10B sequence, bfloat16"),
    ],
)
def test_compiled_kernel_equals_dense_attention_on_a_gpu(
    config: ModelConfig, precision: torch.dtype, tolerance: float, pattern: Pattern
) -> None:
    heads = [tensor.to("cuda", precision).requires_grad_() for tensor in random_heads(config)]
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in heads]

    sparse = BlockSparseAttention(config, pattern)(*heads)
    gradients = torch.autograd.grad(sparse.float().square().sum(), heads)
    dense = attend(*exact, both_masks(config, pattern), config.pb_relax)
    expected = torch.autograd.grad(dense.square().sum(), exact)

    assert relative_error(sparse, dense) < tolerance
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert relative_error(gradient, wanted) < tolerance


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double().cpu() - wanted).norm() / wanted.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("block_index", [1, 2, 4], ids=["row", "column", "convolution"])
def test_block_on_a_gpu_equals_the_cpu(
    block_index: int, checkpointing: str, compiled: bool
) -> None:
    config = sparse_config(num_layers=4, hidden_size=64, image_grid_size=16)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, config.seq_length, 64, generator=generator)
    layers = replace(SINGLE_DEVICE, activation_checkpointing=checkpointing)
    results = []
    for device in (CPU, torch.device("cuda")):
        block = Block(config, layers, block_index)
        initialize(
            ((f"1.{name}", weight) for name, weight in block.named_parameters()), config, seed=0
        )
        block.to(device)
        if device.type == "cuda":
            block.attention.block_sparse.build(device)
            if compiled:
                block.compile(fullgraph=True, dynamic=False)
        given = hidden.to(device, copy=True).requires_grad_()
        output = block(given)
        gradients = torch.autograd.grad(output.square().mean(), [given, *block.parameters()])
        results.append([tensor.cpu() for tensor in (output, *gradients)])

    for found, expected in zip(*reversed(results), strict=True):
        assert relative_error(found, expected.double()) < 1e-3  # other kernels, TF32 off
