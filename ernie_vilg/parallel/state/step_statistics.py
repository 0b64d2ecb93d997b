"""Norms of gradients, weights and updates, and largest activations, of one step on any layout.

Each rank reads the pieces of the parameters that it updates, in float32, between the reduction of
the gradients and the end of the update; one all-reduce adds the squares of all ranks. An element of
the whole model counts on one rank. Nothing is copied: the update is computed again from the weights
and moments after it. AdamW with weight decay d, rate r and step s = r * m / (sqrt(v) + epsilon),
both moments corrected, makes w' = (1 - r d) w - s, so the update is

    w' - w = -(r d w' + s) / (1 - r d)

Activations are watched where a layer returns them: the hidden states after the embedding and after
each block, of all micro-batches, replicas and both directions, padding included.

Source: ours; AdamW is Loshchilov and Hutter's (arXiv:1711.05101).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.library_patches import replaced
from ernie_vilg.parallel.engine.updates import counts_once, norm_segments
from ernie_vilg.parallel.engine.zero_shards import Piece

KINDS = ("embedding", "attention", "feed_forward", "norms", "head", "reconstructor")
"""Kinds of parameters; a model without an end-to-end reconstructor has none of the last."""
_GRADIENT, _WEIGHT, _UPDATE = range(3)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of one step, the same on every rank."""

    squares: Tensor
    """Sums of the squares of gradients before clipping, weights after the update, and updates,
    float64 [layer, kind, 3] on the CPU; layer 0 is the embedding, the last one the head."""
    largest: Tensor
    """Largest absolute hidden state after each layer but the head, float32 [layer - 1] on the
    CPU; infinity where one is no number."""


class StepStatistics:
    """Measures steps of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._config = engine.settings.run.model
        num_layers, device = self._config.num_layers + 2, engine.groups.device
        self._squares = torch.zeros(num_layers, len(KINDS), 3, dtype=torch.float64, device=device)
        self._largest = torch.zeros(num_layers - 1, device=device)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure the step that is made in the block; nothing stays attached after it."""
        self._squares.zero_()
        self._largest.zero_()
        with ExitStack() as watched:
            for name, layer in self._engine.deepspeed_engine.module.named_children():
                if name.isdigit() and int(name) < len(self._largest):
                    watched.enter_context(self._watched(layer, self._largest[int(name)]))
            update = self._engine.update
            watched.enter_context(replaced(update, apply=self._measured(update.apply)))
            yield

    def reduce(self) -> Statistics:
        """Return the statistics of the last measured step; all ranks must call."""
        squares, largest = self._squares.clone(), self._largest.nan_to_num(nan=torch.inf)
        dist.all_reduce(squares)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return Statistics(squares=squares.cpu(), largest=largest.cpu())

    @contextmanager
    def _watched(self, layer: nn.Module, largest: Tensor) -> Iterator[None]:
        """Watch what a layer returns. A hook would not do: compiled blocks skip later hooks."""
        call = layer._compiled_call_impl or layer._call_impl

        def watched_call(*inputs: Any, **options: Any) -> Any:
            hidden = call(*inputs, **options)
            with torch.no_grad():
                low, high = hidden.detach().aminmax()
                largest.copy_(torch.maximum(largest, torch.maximum(-low, high).float()))
            return hidden

        with replaced(layer, _compiled_call_impl=watched_call):
            yield

    def _measured(self, apply: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        """Return an update that is measured on both sides."""

        def measured(is_skipped: Tensor, squares: Tensor) -> Tensor:
            pieces = self._pieces_that_count()
            self._read_gradients(pieces)
            norm = apply(is_skipped, squares)
            # DeepSpeed skips an update whose gradient is not finite, and the guard all others.
            is_made = norm.isfinite() & (is_skipped.to(norm.device) == 0)
            self._read_weights(pieces, is_made)
            return norm

        return measured

    def _pieces_that_count(self) -> list[tuple[Tensor, Piece]]:
        """Return this rank's pieces, each with the numbers that its squares are added to."""
        groups = self._engine.groups
        pieces = self._engine.shards.pieces()
        return [
            (self._squares[layer_of(name), kind_of(name, self._config)], pieces[parameter])
            for name, parameter in self._engine.local_parameters()
            if parameter in pieces and counts_once(parameter, groups.tensor_rank)
        ]

    def _read_gradients(self, pieces: Sequence[tuple[Tensor, Piece]]) -> None:
        shards = self._engine.shards
        scale = self._engine.groups.data_size if shards.flat_groups() else shards.loss_scale
        gradients = dict(zip(map(id, shards.tensors()), shards.gradient_parts(), strict=True))
        for numbers, piece in pieces:
            for part in _cut(gradients[id(piece.shard)], piece.in_shard):
                numbers[_GRADIENT] += (_squares(part) / scale**2).to(numbers.device)

    def _read_weights(self, pieces: Sequence[tuple[Tensor, Piece]], is_made: Tensor) -> None:
        shards = self._engine.shards
        settings = dict(zip(map(id, shards.tensors()), shards.settings(), strict=True))
        for numbers, piece in pieces:
            numbers[_WEIGHT] += _squares(piece.shard.detach()[piece.in_shard]).to(numbers.device)
            state = shards.optimizer.state.get(piece.shard, {})
            if "exp_avg" not in state:  # no update was ever made
                continue
            squares = _update_squares(piece, state, settings[id(piece.shard)])
            # Not a product: what was skipped may be no number.
            numbers[_UPDATE] += torch.where(is_made, squares.to(numbers.device), 0.0)


def layer_of(name: str) -> int:
    """Return the index of a parameter's layer, from its name such as "3.attention.output.bias"."""
    return int(name.partition(".")[0])


def kind_of(name: str, config: ModelConfig) -> int:
    """Return the index into `KINDS` of a parameter's kind.

    Args:
        name: name such as "3.attention.output.weight"; layer 0 is the embedding.
        config: the model's shape.
    """
    owner = name.rpartition(".")[0]
    if ".reconstructor." in name:
        kind = "reconstructor"
    elif owner.endswith("norm"):
        kind = "norms"
    elif layer_of(name) == 0:
        kind = "embedding"
    elif layer_of(name) > config.num_layers:
        kind = "head"
    else:
        kind = "attention" if ".attention." in name else "feed_forward"
    return KINDS.index(kind)


def _cut(parts: Sequence[Tensor], wanted: slice) -> Iterator[Tensor]:
    """Yield the elements of a slice of flat tensors that follow each other."""
    start = 0
    for part in parts:
        begin, end = max(wanted.start - start, 0), min(wanted.stop - start, part.numel())
        if begin < end:
            yield part[begin:end]
        start += part.numel()


def _squares(values: Tensor) -> Tensor:
    """Return the sum of the squares of flat values, float64 []."""
    norms = torch._foreach_norm([part.float() for part in norm_segments(values)])
    return torch.stack(norms).double().square().sum()


def _update_squares(piece: Piece, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return the sum of the squares of the last update of a piece, float64 []."""
    rate, decay = group["lr"], group["lr"] * group["weight_decay"]
    beta1, beta2 = group["betas"]
    steps = state["step"].double()
    first, second = 1 - beta1**steps, (1 - beta2**steps).sqrt()
    total = torch.zeros((), dtype=torch.float64, device=piece.shard.device)
    whole = (piece.shard.detach(), state["exp_avg"], state["exp_avg_sq"])
    for weight, mean, square in zip(
        *(norm_segments(each.flatten()[piece.in_shard]) for each in whole), strict=True
    ):
        denominator = (square.sqrt() / second).add_(group["eps"])
        change = (mean * (rate / first)).div_(denominator).add_(weight, alpha=decay)
        total += torch.linalg.vector_norm(change).double().square() / (1 - decay) ** 2
    return total
