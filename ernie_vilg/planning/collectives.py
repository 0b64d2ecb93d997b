"""Every collective of one training step, from a run's settings: kind, bytes, ranks, how often.

The list is that of one rank of each pipeline stage; all ranks of a stage have the same. Evaluation,
checkpoints and logged losses are not part of a step. `tests/planning/test_collectives.py` holds it
against the operators that real steps run.

DeepSpeed itself communicates among replicas under ZeRO 2 and 3, in float16 and with an offloaded
optimizer, in messages that depend on its buckets: these are not listed.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.initialization import TIED, has_partial_gradient, original_name
from ernie_vilg.model.lora.names import has_optimizer_state
from ernie_vilg.model.parameter_groups import group_index
from ernie_vilg.planning.stage_shards import StageShard, stage_shards

ALL = "all ranks"
TENSOR = "tensor ranks"
REPLICAS = "replicas"
ENDS = "first and last stage"
NEXT = "next stage"
PREVIOUS = "previous stage"

RANGE_SIZE = 2**27
"""Number of elements of the largest range of sums, as in `parallel.engine.gradient_reduction`."""

_GUARD_BYTES = 24
"""Bytes of a rank in the exchange of the update guard: loss, norm, squares, float64."""
_SIGNAL_BYTES = 16
"""Bytes of the agreement on a stop: two int64."""
_LOSS_VALUES = (1, 2)
"""float32 values per target in each all-reduce of the cross-entropy: maximum; sum and target."""
_FLAT_ALIGNMENT = 2
"""Number of elements to whose multiple DeepSpeed pads each replica's partition."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One kind of collective that a rank takes part in during a step."""

    kind: str
    """Kind, such as all-reduce."""
    group: str
    """Ranks that take part, one of this module's names."""
    num_bytes: int
    """Bytes of the larger of input and output."""
    count: int
    """Times per step."""
    purpose: str
    """Purpose in a few words."""


def step_collectives(
    config: PretrainConfig, world_size: int, precision: torch.dtype
) -> list[list[Exchange]]:
    """Return the collectives of a rank of each stage, first stage first.

    Args:
        config: settings of the run.
        world_size: number of ranks.
        precision: number format of weights and activations.
    """
    stages = stage_shards(config.model, config.parallelism)
    return [
        list(_Rank(config, world_size, precision, stages, index)) for index in range(len(stages))
    ]


def lists_replicas(config: PretrainConfig, precision: torch.dtype) -> bool:
    """Return whether the list has what replicas exchange; otherwise only DeepSpeed knows it."""
    layout = config.parallelism
    is_scaled = precision == torch.float16
    return layout.zero_stage == 1 and not layout.offload_optimizer and not is_scaled


class _Rank:
    """One rank of a stage."""

    def __init__(
        self,
        config: PretrainConfig,
        world_size: int,
        precision: torch.dtype,
        stages: list[StageShard],
        index: int,
    ) -> None:
        layout, model = config.parallelism, config.model
        self._config, self._model, self._layout = config, model, layout
        self._world_size, self._precision = world_size, precision
        self._item = precision.itemsize
        self._passes = layout.num_micro_batches(world_size)
        self._data_size = layout.data_parallel_size(world_size)
        self._tensor_size = layout.tensor_parallel_size
        self._stage = stages[index]
        self._is_first, self._is_last = index == 0, index == len(stages) - 1
        pairs, hidden = layout.micro_batch_size, model.hidden_size
        self._num_pairs = pairs
        self._hidden_bytes = len(Direction) * pairs * model.seq_length * hidden * self._item

    def __iter__(self) -> Iterator[Exchange]:
        yield from self._of_tensor_ranks()
        yield from self._of_stages()
        yield from self._of_replicas()
        yield from self._of_all()

    def _of_tensor_ranks(self) -> Iterator[Exchange]:
        if self._tensor_size == 1:
            return
        num_blocks = len(self._stage.layers) - self._is_first - self._is_last
        yield from self._of_blocks(num_blocks * self._passes)
        if self._is_first:
            yield from self._of_embedding()
        if self._is_last:
            yield from self._of_head()
        names = self._stage.shapes.items()
        is_split = self._layout.sequence_parallel
        partial = sum(
            shape.numel()
            for name, shape in names
            if has_optimizer_state(name, self._model)
            and has_partial_gradient(name, sequence_parallel=is_split)
        )
        if partial:
            yield _exchange("all-reduce", TENSOR, 4 * partial, 1, "partial gradients")

    def _of_blocks(self, count: int) -> Iterator[Exchange]:
        """Yield the collectives of a block: two pairs of a column layer and a row layer.

        Full checkpointing repeats the forward pass up to the last tensor that the backward pass
        needs: the last sum is not repeated unless a norm or dropout follows it.
        """
        repeats = self._layout.activation_checkpointing == "full"
        is_sum_needed = self._model.sandwich_norm or self._model.dropout > 0
        num_sums = 4 + repeats * (2 if is_sum_needed else 1)
        size = self._hidden_bytes
        if not self._layout.sequence_parallel:
            yield _exchange("all-reduce", TENSOR, size, num_sums * count, "blocks")
            return
        yield _exchange("all-gather", TENSOR, size, (6 + 2 * repeats) * count, "blocks")
        yield _exchange("reduce-scatter", TENSOR, size, num_sums * count, "blocks")

    def _of_embedding(self) -> Iterator[Exchange]:
        model, count = self._model, self._passes
        for num_slots in (model.text_length + 1, model.num_image_tokens):
            yield _exchange("all-reduce", TENSOR, self._vectors(num_slots), count, "embedding")
        if self._layout.sequence_parallel:
            yield _exchange("all-gather", TENSOR, self._hidden_bytes, count, "embedding, backward")

    def _of_head(self) -> Iterator[Exchange]:
        model, count = self._model, self._passes
        if self._layout.sequence_parallel:
            yield _exchange("all-gather", TENSOR, self._hidden_bytes, count, "head")
        decoder = model.reconstructor.decoder
        if model.reconstructor.is_end_to_end and decoder is not None:
            vectors = self._vectors(model.num_image_tokens, decoder.embedding_size)
            yield _exchange("all-reduce", TENSOR, vectors, count, "reconstructor")
            backward = self._vectors(model.num_image_tokens)
            yield _exchange("all-reduce", TENSOR, backward, count, "reconstructor, backward")
        for num_slots in (model.text_length, model.num_image_tokens):
            yield _exchange("all-reduce", TENSOR, self._vectors(num_slots), count, "head, backward")
            for values in _LOSS_VALUES:
                size = 4 * values * self._num_pairs * num_slots
                yield _exchange("all-reduce", TENSOR, size, count, "loss")

    def _of_stages(self) -> Iterator[Exchange]:
        if self._is_first and self._is_last:
            return
        # Without sequence parallelism all tensor ranks hold all tokens: each sends a part of them.
        gathers = self._tensor_size > 1 and not self._layout.sequence_parallel
        for is_end, group in ((self._is_first, PREVIOUS), (self._is_last, NEXT)):
            if is_end:
                continue
            for kind in ("send", "receive"):
                size = self._hidden_bytes // self._tensor_size
                yield _exchange(kind, group, size, self._passes, "pipeline")
                if gathers:
                    header = 8 * (8 + self._tensor_size)  # sizes and bounds of the parts, int64
                    yield _exchange(kind, group, header, self._passes, "pipeline, shape")
            if gathers:
                # Inputs; or, in the backward pass, gradients and the outputs that were split.
                count = self._passes * (2 if group == NEXT else 1)
                yield _exchange("all-gather", TENSOR, self._hidden_bytes, count, "pipeline")
        is_end = self._is_first or self._is_last
        if self._model.tied_embeddings and is_end and not self._model.lora.rank:
            for name, table in self._stage.shapes.items():
                if _is_tied(name):
                    yield _exchange("all-reduce", ENDS, 4 * table.numel(), 1, "tied embeddings")

    def _of_replicas(self) -> Iterator[Exchange]:
        if self._data_size == 1:
            return
        yield _exchange("all-reduce", REPLICAS, 4, 1, "number of text targets")
        if not lists_replicas(self._config, self._precision):
            return
        counts: Counter[int] = Counter()
        for name, shape in self._stage.shapes.items():
            if not has_optimizer_state(name, self._model):
                continue
            index = group_index(original_name(name, self._model), self._config.optimizer)
            counts[index] += shape.numel()
        for index in sorted(counts):
            yield from self._of_flat_group(counts[index])

    def _of_flat_group(self, count: int) -> Iterator[Exchange]:
        """Yield the reduction of flat sums and the all-gather of the weights that they update."""
        share = _FLAT_ALIGNMENT * -(-count // (_FLAT_ALIGNMENT * self._data_size))
        padded = share * self._data_size
        if padded <= RANGE_SIZE:
            yield _exchange("reduce-scatter", REPLICAS, 4 * padded, 1, "gradients")
        else:
            starts = (
                start
                for begin in range(0, count, share)
                for start in range(begin, min(begin + share, count), RANGE_SIZE)
            )
            for start in starts:
                end = min(start + RANGE_SIZE, (start // share + 1) * share, count)
                yield _exchange("reduce", REPLICAS, 4 * (end - start), 1, "gradients")
        yield _exchange("all-gather", REPLICAS, self._item * padded, 1, "weights")

    def _of_all(self) -> Iterator[Exchange]:
        if self._world_size == 1:
            return
        yield _exchange("all-gather", ALL, _GUARD_BYTES * self._world_size, 1, "update guard")
        yield _exchange("all-reduce", ALL, _SIGNAL_BYTES, 1, "whether to stop")

    def _vectors(self, num_slots: int, width: int | None = None) -> int:
        """Return the bytes of a vector per pair and slot."""
        return self._num_pairs * num_slots * (width or self._model.hidden_size) * self._item


def _exchange(kind: str, group: str, num_bytes: int, count: int, purpose: str) -> Exchange:
    return Exchange(kind=kind, group=group, num_bytes=num_bytes, count=count, purpose=purpose)


def _is_tied(name: str) -> bool:
    owner = name.rpartition(".")[0].rpartition(".")[2]
    return name.endswith(".weight") and owner in {*TIED, *TIED.values()}


def collective_lines(config: PretrainConfig, world_size: int, precision: torch.dtype) -> list[str]:
    """Return the collectives of every stage for people; equal neighbouring stages share lines.

    Args:
        config: settings of the run.
        world_size: number of ranks.
        precision: number format of weights and activations.
    """
    stages = step_collectives(config, world_size, precision)
    lines = ["collectives of a step, per rank:"]
    for exchanges, indices in groupby(range(len(stages)), key=lambda index: stages[index]):
        numbers = list(indices)
        if len(stages) > 1:
            last = f" to {numbers[-1]}" if len(numbers) > 1 else ""
            lines.append(f"  stage {numbers[0]}{last}:")
        lines += map(_line, _merged(exchanges))
    if not any(stages):
        return ["collectives of a step: none"]
    if (
        not lists_replicas(config, precision)
        and config.parallelism.data_parallel_size(world_size) > 1
    ):
        lines.append("  and those of DeepSpeed among replicas, which depend on its buckets")
    if config.model.lora.rank and config.parallelism.tensor_parallel_size > 1:
        lines.append(
            "  tensor ranks are listed as if all weights trained: with adapters they exchange less "
            "for inputs that need no gradient, and the adapters' own, narrower ones"
        )
    return lines


def _merged(exchanges: list[Exchange]) -> list[Exchange]:
    """Return a list with equal exchanges counted together, in order of the first."""
    totals: dict[Exchange, int] = {}
    for each in exchanges:
        key = replace(each, count=0)
        totals[key] = totals.get(key, 0) + each.count
    return [replace(key, count=count) for key, count in totals.items()]


def _line(each: Exchange) -> str:
    size = _size(each.num_bytes)
    return f"  {each.count:>6} x {each.kind:<14}{size:>10}  {each.group:<20}  {each.purpose}"


def _size(num_bytes: int) -> str:
    """Return bytes in the largest unit of which there is at least one."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    for size, name in units:
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {name}"
    return f"{num_bytes} B"
