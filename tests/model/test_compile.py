"""Blocks compile once, to one graph without breaks."""

from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from ernie_vilg.model.block import Block
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.transformer import build_transformer
from tests.model.test_reference import sparse_config
from tests.model.tiny import tiny_model, tiny_pairs

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CONFIG = sparse_config(image_grid_size=2, qk_norm=True, sandwich_norm=True)


def compiled_model(checkpointing: str) -> nn.Sequential:
    layers = replace(SINGLE_DEVICE, activation_checkpointing=checkpointing)
    model = build_transformer(CONFIG, layers)
    model.load_state_dict(tiny_model(CONFIG).state_dict())
    for layer in model:
        if isinstance(layer, Block):
            # As ernie_vilg.parallel.engine.build does, but without a C++ compiler.
            layer.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    return model


def loss_of(model: nn.Sequential) -> torch.Tensor:
    output = model(tiny_pairs(CONFIG))
    return output.image_logits.square().mean() + output.text_logits.square().mean()


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_all_blocks_share_one_graph_and_nothing_recompiles(checkpointing: str) -> None:
    model = compiled_model(checkpointing)

    for _ in range(3):
        loss_of(model).backward()

    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_blocks_compute_the_same(checkpointing: str) -> None:
    compiled, plain = compiled_model(checkpointing), tiny_model(CONFIG)

    losses = loss_of(compiled), loss_of(plain)
    for loss in losses:
        loss.backward()

    torch.testing.assert_close(*losses)
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
