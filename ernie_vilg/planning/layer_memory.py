"""The memory of each kind of layer under a layout: embedding, block, head with the loss.

Layers are built without values and traced once per kind; hundreds of layouts share the traces.
The plain attention of a CPU is traced directly. A GPU's kernel cannot run here; a stand-in keeps
the tensors that it keeps: its inputs, its result, and one float32 per query.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.model import cross_entropy
from ernie_vilg.model.attention import PLAIN_ATTENTION_MAX_SEQ, Attention
from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks, pattern_of_block
from ernie_vilg.model.block import Block
from ernie_vilg.model.block_sparse import transpose_grid
from ernie_vilg.model.cross_entropy import CHUNK_ELEMENTS
from ernie_vilg.model.embedding import Embedding
from ernie_vilg.model.head import Head
from ernie_vilg.model.initialization import Uninitialized
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.model.loss import Objective, Targets
from ernie_vilg.planning.rank_layers import rank_layers
from ernie_vilg.planning.trace import MARKER, LayerMemory, LayerTrace, trace_layer

Run = tuple[Sequence[Tensor], Callable[[], Tensor]]
"""Tensors that exist before the pass, and the function that runs a layer forward."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Everything that determines the memory of a layer."""

    model: ModelConfig
    """Shape of the model."""
    objective: ObjectiveConfig
    """Settings of the loss."""
    precision: torch.dtype
    """Number format of weights and activations."""
    device_type: str
    """Kind of device: cuda or cpu."""
    tensor_size: int
    """Number of ranks that split each layer."""
    sequence_parallel: bool
    """Whether these ranks also split the tokens."""
    checkpointing: str
    """Activation checkpointing: none, selective or full."""


@lru_cache(maxsize=1024)
def embedding_memory(variant: Variant, micro_batch_size: int) -> LayerMemory:
    """Return the memory of the first layer."""
    return _embedding_trace(replace(variant, checkpointing="none")).at(micro_batch_size)


@lru_cache(maxsize=4096)
def block_memory(variant: Variant, block_index: int, micro_batch_size: int) -> LayerMemory:
    """Return the memory of a block.

    Args:
        variant: model and layout.
        block_index: index from 1; on a GPU, blocks with the column pattern reorder the image slots.
        micro_batch_size: pairs per micro-batch.
    """
    is_column = pattern_of_block(variant.model, block_index) is Pattern.COLUMN
    ordered = is_column and variant.device_type == "cuda"
    return _block_trace(variant, ordered).at(micro_batch_size)


@lru_cache(maxsize=1024)
def head_memory(variant: Variant, micro_batch_size: int) -> LayerMemory:
    """Return the memory of the last layer and the loss."""
    model = variant.model
    in_one_chunk = frozenset(
        vocab
        for vocab, num_slots in (
            (model.codebook_size // variant.tensor_size, model.num_image_tokens),
            (model.text_vocab_size // variant.tensor_size, model.text_length),
        )
        if micro_batch_size * num_slots * vocab <= CHUNK_ELEMENTS
    )
    return _head_trace(replace(variant, checkpointing="none"), in_one_chunk).at(micro_batch_size)


def hidden_bytes(variant: Variant, micro_batch_size: int) -> int:
    """Return the bytes of the hidden states between two layers, on one rank."""
    tokens = _tokens(variant.model, micro_batch_size)
    shares = variant.tensor_size if variant.sequence_parallel else 1
    return tokens * variant.model.hidden_size * variant.precision.itemsize // shares


def logits_bytes(variant: Variant, micro_batch_size: int) -> int:
    """Return the bytes of a micro-batch's logits on one rank."""
    model = variant.model
    values = (
        model.num_image_tokens * model.codebook_size + model.text_length * model.text_vocab_size
    )
    return micro_batch_size * values * variant.precision.itemsize // variant.tensor_size


def mask_bytes(model: ModelConfig) -> int:
    """Return the bytes of one block's mask: one byte per pair of slots and direction."""
    return len(Direction) * model.seq_length**2


@lru_cache(maxsize=256)
def _embedding_trace(variant: Variant) -> LayerTrace:
    def run(size: int) -> Run:
        layer = _built(variant, Embedding, size)
        ids = _ids(variant, size)
        return [*_state(layer), *ids], lambda: layer(ids)

    return _trace(variant, run)


@lru_cache(maxsize=256)
def _block_trace(variant: Variant, ordered: bool) -> LayerTrace:
    """Trace a block, with or without an attention in column-major order."""
    model = variant.model
    pattern = Pattern.COLUMN if ordered else Pattern.FULL
    model = replace(model, attention="sparse" if ordered else "full")
    indices = range(1, model.num_layers + 1)
    index = next(index for index in indices if pattern_of_block(model, index) is pattern)
    both_masks(model, pattern)  # fills the cache: the mask must have real values

    def run(size: int) -> Run:
        layer = _built(variant, Block, size, model, index)
        layer.attention.attend_all = partial(_attend, layer.attention, variant, ordered)
        hidden = _hidden(variant, size)
        return [*_state(layer), hidden], lambda: layer(hidden)

    return _trace(variant, run)


@lru_cache(maxsize=256)
def _head_trace(variant: Variant, in_one_chunk: frozenset[int]) -> LayerTrace:
    """Trace the head and its loss, which takes the logits of these vocabularies in one chunk."""

    def run(size: int) -> Run:
        layer = _built(variant, Head, size)
        objective = Objective(variant.objective, _layers(variant, size))
        hidden, targets = _hidden(variant, size), _targets(variant, size)
        held: list[Any] = []  # as the engine holds logits and losses during the backward pass

        def forward() -> Tensor:
            held.append(layer(hidden))
            held.append(objective(held[0], targets))
            total: Tensor = held[1].total
            return total

        return [*_state(layer), hidden, *targets], forward

    with _first_chunks(in_one_chunk):
        return _trace(variant, run)


@contextmanager
def _first_chunks(whole: Collection[int]) -> Iterator[None]:
    """Let the loss take one chunk, as large as any other: the traced micro-batch has thousands.

    Args:
        whole: vocabularies whose chunk has all rows.
    """
    chunks = cross_entropy._chunks

    def first(rows: Tensor) -> Iterator[slice]:
        return iter([slice(None)]) if rows.shape[1] in whole else islice(chunks(rows), 1)

    cross_entropy._chunks = first
    try:
        yield
    finally:
        cross_entropy._chunks = chunks


def _trace(variant: Variant, run: Callable[[int], Run]) -> LayerTrace:
    with torch.enable_grad():
        # Divisible by the number of tensor ranks, which split the tokens.
        size = MARKER * variant.tensor_size
        if variant.device_type != "cpu":
            return trace_layer(size, *run(size))
        # Fake tensors have no values either, but report the device "cpu", which attention checks.
        with FakeTensorMode(allow_non_fake_inputs=True):
            return trace_layer(size, *run(size))


def _empty(variant: Variant, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    device = "cpu" if variant.device_type == "cpu" else "meta"
    return torch.empty(shape, dtype=dtype or variant.precision, device=device)


def _built(
    variant: Variant,
    kind: type[nn.Module],
    size: int,
    model: ModelConfig | None = None,
    *rest: Any,
) -> Any:
    """Return a layer whose parameters already have gradients."""
    with torch.device("meta"), Uninitialized():
        layer = kind(model or variant.model, _layers(variant, size), *rest)
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # `layer.to` cannot replace tensors without values.
            converted = nn.Parameter(_empty(variant, *parameter.shape))
            converted.grad = _empty(variant, *parameter.shape)
            setattr(module, name, converted)
    return layer


def _layers(variant: Variant, size: int) -> ParallelLayers:
    return rank_layers(
        variant.tensor_size, variant.checkpointing, split_tokens=variant.sequence_parallel
    )


def _tokens(model: ModelConfig, size: int) -> int:
    return len(Direction) * size * model.seq_length


def _state(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _ids(variant: Variant, size: int) -> tuple[Tensor, Tensor]:
    model = variant.model
    return (
        _empty(variant, size, model.text_length, dtype=torch.int64),
        _empty(variant, size, model.num_image_tokens, dtype=torch.int64),
    )


def _hidden(variant: Variant, size: int) -> Tensor:
    model = variant.model
    shape: tuple[int, ...] = (len(Direction), size, model.seq_length, model.hidden_size)
    if variant.sequence_parallel:
        shape = (_tokens(model, size) // variant.tensor_size, model.hidden_size)
    return _empty(variant, *shape).requires_grad_()


def _targets(variant: Variant, size: int) -> Targets:
    decoder = variant.model.reconstructor.decoder
    pixels: list[Tensor] = []
    if variant.model.reconstructor.is_end_to_end and decoder is not None:
        side = decoder.image_size
        pixels = [_empty(variant, size, 3, side, side, dtype=torch.uint8)]
    return (*_ids(variant, size), _empty(variant, 1, dtype=torch.float32), *pixels)


def _attend(
    attention: Attention,
    variant: Variant,
    ordered: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """Allocate the tensors that the device's kernel allocates."""
    if variant.device_type == "cpu":
        if variant.model.pb_relax or key.shape[-2] <= PLAIN_ATTENTION_MAX_SEQ:
            return Attention.attend_all(attention, query, key, value)
        return _fused(query, key, value)
    if not ordered:
        return _fused(query, key, value)
    query, key, value = (transpose_grid(part, variant.model) for part in (query, key, value))
    return transpose_grid(_fused(query, key, value), variant.model)


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with one kernel per direction."""
    directions = zip(query, key, value, strict=True)
    return torch.stack([_Fused.apply(*direction) for direction in directions])


class _Fused(torch.autograd.Function):
    """Stand-in for a kernel that never writes the scores to memory."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        normalizer = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, attended, normalizer)
        return attended

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, normalizer = context.saved_tensors
        _products = torch.empty_like(normalizer)  # of gradient and result, one per query
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
