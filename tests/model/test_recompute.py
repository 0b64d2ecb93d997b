"""Checkpointing keeps less for the backward pass, and changes no gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.linear import SUMS, Linear
from ernie_vilg.model.recompute import recomputed
from ernie_vilg.model.transformer import build_transformer
from tests.model.tiny import CONFIG, tiny_config, tiny_model, tiny_pairs


class StorageMeter(TorchDispatchMode):
    """Counts the memory that operations return, except views of given tensors."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self._given = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in given}
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def bytes_alive(self) -> int:
        """Return the bytes that are still referenced."""
        alive = {ref.cdata: size for ref, size in self._sizes.items() if not ref.expired()}
        return sum(size for cdata, size in alive.items() if cdata not in self._given)


def gradients(checkpointing: str) -> list[Tensor]:
    layers = replace(SINGLE_DEVICE, activation_checkpointing=checkpointing)
    model = build_transformer(CONFIG, layers)
    model.load_state_dict(tiny_model().state_dict())
    output = model(tiny_pairs())
    loss = output.image_logits.square().sum() + output.text_logits.square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_gradients_are_the_same_bit_for_bit(checkpointing: str) -> None:
    for one, other in zip(gradients(checkpointing), gradients("none"), strict=True):
        assert one.equal(other)


def test_a_recomputed_value_is_not_kept() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    source = torch.randn(4, 8, requires_grad=True)
    with StorageMeter(source, weight) as meter:
        output = source * 2
        with recomputed(output, lambda: source * 2):
            result = output.view(2, 2, 8) @ weight
        del output

    assert meter.bytes_alive() == result.untyped_storage().nbytes()
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    torch.testing.assert_close(gradient, (source * 2).sum(0)[:, None].expand(8, 8))


def bytes_kept_by_a_block(checkpointing: str, *, has_sums: bool) -> int:
    """Return the memory after a block's forward pass, in bytes per slot and hidden value."""
    config = tiny_config(hidden_size=32, text_length=28, image_grid_size=6)
    layers = replace(SINGLE_DEVICE, activation_checkpointing=checkpointing)
    block: nn.Module = build_transformer(config, layers)[1]
    initialize([(f"1.{name}", value) for name, value in block.named_parameters()], config, seed=0)
    hidden = torch.randn(2, 4, config.seq_length, config.hidden_size, requires_grad=True)
    for layer in block.modules():
        if isinstance(layer, Linear) and has_sums:
            setattr(layer.weight, SUMS, torch.zeros_like(layer.weight))
    with StorageMeter(*block.parameters()) as meter:
        result = block(hidden)
    assert result.requires_grad
    return meter.bytes_alive() // hidden.numel()


@pytest.mark.parametrize("has_sums", [False, True])
def test_full_keeps_less_than_selective_and_that_less_than_none(has_sums: bool) -> None:
    none, selective, full = (
        bytes_kept_by_a_block(checkpointing, has_sums=has_sums)
        for checkpointing in ("none", "selective", "full")
    )

    assert full == 4  # only its output, one float32
    # Kept: the sum between the branches, queries, keys, values, attention's output, both branches'
    # outputs, the GELU's input. Dropped: 2 norms, the GELU (4 wide), 2 x 64 probabilities
    # per slot and 2 heads for 32 hidden values.
    assert full < selective < none
    assert none - selective >= 4 * (2 + 4 + 2 * 64 // 32)
