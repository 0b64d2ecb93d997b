"""The memory of each kind of layer under a layout: embedding, block, head with the loss.

Layers are built without values and traced once per kind; hundreds of layouts share the traces.
What the plain attention of a CPU does is traced as it is. A GPU's kernel, which needs a GPU to run,
is stood in for by what it keeps: its inputs, its result, and one float32 per query.

Source: ours.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.model.attention import PLAIN_ATTENTION_MAX_SEQ
from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks, pattern_of_block
from ernie_vilg.model.block import Block
from ernie_vilg.model.block_sparse import transpose_grid
from ernie_vilg.model.embedding import Embedding
from ernie_vilg.model.head import Head
from ernie_vilg.model.loss import Objective
from ernie_vilg.planning.sharded_layers import memory_layers
from ernie_vilg.planning.trace import LayerTrace, trace_layer


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What decides the memory of a layer."""

    model: ModelConfig
    """The model's shape."""
    objective: ObjectiveConfig
    """The loss."""
    precision: torch.dtype
    """Of weights and activations."""
    device_type: str
    """cuda or cpu."""
    tensor_size: int
    """Ranks that share each layer."""
    sequence_parallel: bool
    """Whether they also share the tokens."""
    checkpointing: str
    """none, selective or full."""


@lru_cache(maxsize=512)
def embedding_trace(variant: Variant) -> LayerTrace:
    """Return what the first layer needs."""

    def run(size: int) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
        layer = _built(variant, Embedding, variant.model, size)
        ids = _ids(variant.model, size)
        return [*_state(layer), *ids], lambda: layer(ids)

    return _trace(variant, run)


@lru_cache(maxsize=512)
def block_trace(variant: Variant, is_column: bool) -> LayerTrace:
    """Return what a block needs.

    Args:
        variant: the layout.
        is_column: whether its attention runs in column-major order on a GPU.
    """
    index = next(
        index
        for index in range(1, variant.model.num_layers + 1)
        if is_column_block(variant.model, index) == is_column
    )
    both_masks(variant.model, pattern_of_block(variant.model, index))  # outside: it has values

    def run(size: int) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
        layer = _built(variant, Block, variant.model, size, index)
        layer.attention.attend_all = partial(_attend, layer.attention, variant, is_column)
        hidden = _hidden(variant, size).requires_grad_()
        return [*_state(layer), hidden], lambda: layer(hidden)

    return _trace(variant, run)


@lru_cache(maxsize=512)
def head_trace(variant: Variant) -> LayerTrace:
    """Return what the last layer and the loss need."""

    def run(size: int) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
        layer = _built(variant, Head, variant.model, size)
        objective = Objective(variant.objective, _layers(variant, size))
        hidden, targets = _hidden(variant, size).requires_grad_(), _targets(variant, size)
        held: list[Any] = []  # the engine holds the logits until the step is over

        def forward() -> Tensor:
            held.append(layer(hidden))
            held.append(objective(held[0], targets))
            total: Tensor = held[1].total
            return total

        return [*_state(layer), hidden, *targets], forward

    return _trace(variant, run)


def is_column_block(model: ModelConfig, index: int) -> bool:
    """Return whether a block's attention runs in column-major order on a GPU."""
    return pattern_of_block(model, index) is Pattern.COLUMN


def hidden_bytes(variant: Variant, micro_batch_size: int) -> int:
    """Return the bytes that a layer hands to the next."""
    model = variant.model
    values = len(Direction) * micro_batch_size * model.seq_length * model.hidden_size
    shares = variant.tensor_size if variant.sequence_parallel else 1
    return values * variant.precision.itemsize // shares


def _trace(
    variant: Variant, run: Callable[[int], tuple[Sequence[Tensor], Callable[[], Tensor]]]
) -> LayerTrace:
    with ExitStack() as stack:
        if variant.device_type == "cpu":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        else:
            stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.enable_grad())
        return trace_layer(run)


def _built(
    variant: Variant, kind: type[nn.Module], model: ModelConfig, size: int, *rest: Any
) -> Any:
    layer = kind(model, _layers(variant, size), *rest)
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Not `layer.to`, which cannot exchange tensors without values.
            converted = nn.Parameter(torch.empty(parameter.shape, dtype=variant.precision))
            converted.grad = torch.empty_like(converted)
            setattr(module, name, converted)
    return layer


def _layers(variant: Variant, size: int) -> Any:
    gathered = None
    if variant.sequence_parallel:
        shape = (_tokens(variant.model, size), variant.model.hidden_size)
        gathered = partial(_the_one, torch.empty(shape, dtype=variant.precision))
    return memory_layers(variant.tensor_size, variant.checkpointing, gathered)


def _the_one(buffer: Tensor) -> Tensor:
    return buffer.detach()


def _tokens(model: ModelConfig, size: int) -> int:
    return len(Direction) * size * model.seq_length


def _state(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _ids(model: ModelConfig, size: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(size, model.text_length, dtype=torch.int64),
        torch.empty(size, model.num_image_tokens, dtype=torch.int64),
    )


def _hidden(variant: Variant, size: int) -> Tensor:
    model = variant.model
    shape = (len(Direction), size, model.seq_length, model.hidden_size)
    if variant.sequence_parallel:
        shape = (_tokens(model, size) // variant.tensor_size, model.hidden_size)  # type: ignore[assignment]
    return torch.empty(shape, dtype=variant.precision)


def _targets(variant: Variant, size: int) -> tuple[Tensor, ...]:
    model = variant.model
    pixels: list[Tensor] = []
    decoder = model.reconstructor.decoder
    if model.reconstructor.is_end_to_end and decoder is not None:
        side = decoder.image_size
        pixels = [torch.empty(size, 3, side, side, dtype=torch.uint8)]
    return (*_ids(model, size), torch.empty(1), *pixels)


def _attend(
    attention: Any, variant: Variant, is_column: bool, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Do what the device's kernel does to memory."""
    if variant.device_type == "cpu":
        is_short = key.shape[-2] <= PLAIN_ATTENTION_MAX_SEQ
        if is_short or variant.model.pb_relax:
            result: Tensor = type(attention).attend_all(attention, query, key, value)
            return result
    order = partial(transpose_grid, config=variant.model) if is_column else None
    if order is not None and variant.device_type == "cuda":
        query, key, value = order(query), order(key), order(value)
    attended = torch.stack([_Fused.apply(*parts) for parts in zip(query, key, value, strict=True)])
    return order(attended) if order is not None and variant.device_type == "cuda" else attended


class _Fused(torch.autograd.Function):
    """A kernel that never writes the scores to memory."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        normalizer = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, attended, normalizer)
        return attended

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = context.saved_tensors
        (gradient,) = gradients
        products = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        del gradient, products
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
