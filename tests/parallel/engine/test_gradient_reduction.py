"""Gradients reach the owner of their partition, in one order on all ranks, as early as they can."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie_vilg.config.launch import Launch
from ernie_vilg.parallel.engine import gradient_reduction
from ernie_vilg.parallel.engine.gradient_reduction import GradientReduction, in_order_of_completion
from ernie_vilg.parallel.engine.zero_shards import FlatGroup
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from tests.distributed import run_distributed

PASSES = 2


def flat_group(parameters: list[nn.Parameter], size: int, replicas: int, rank: int) -> FlatGroup:
    """Return flat sums of zeros, padded to `size` elements."""
    sums = torch.zeros(size)
    share = size // replicas
    positions, start = {}, 0
    for parameter in parameters:
        positions[parameter] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return FlatGroup(
        sums=sums,
        own_sums=sums[rank * share : (rank + 1) * share],
        shard=torch.zeros(share),
        partition_start=rank * share,
        positions=positions,
    )


def test_ranges_go_from_the_last_layer_to_the_first() -> None:
    of_layers = [nn.Parameter(torch.zeros(size)) for size in (3, 2, 4)]
    layers = {parameter: layer for layer, parameter in enumerate(of_layers)}
    group = flat_group(of_layers, size=12, replicas=2, rank=0)  # partitions of 6, padding from 9

    ranges = in_order_of_completion([group], layers, range_size=4)

    # Elements: layer 0 has 0 to 2, layer 1 has 3 and 4, layer 2 has 5 to 8.
    start = group.sums.data_ptr()
    assert [
        ((each.sums.data_ptr() - start) // 4, each.sums.numel(), each.owner, each.first_layer)
        for each in ranges
    ] == [(6, 3, 1, 2), (4, 2, 0, 1), (0, 4, 0, 0)]


def test_a_range_with_a_late_gradient_comes_last() -> None:
    of_layers = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    group = flat_group(of_layers, size=6, replicas=1, rank=0)

    ranges = in_order_of_completion(
        [group], dict(zip(of_layers, (0, 1, -1), strict=True)), range_size=2
    )

    assert [each.first_layer for each in ranges] == [1, 0, -1]


class Layers(nn.Module):
    """Three layers, whose gradients are added to flat sums: matrices to one, vectors to another."""

    def __init__(self, rank: int, replicas: int) -> None:
        super().__init__()
        self.weights = [nn.Parameter(torch.full((4, 4), layer + 0.1)) for layer in range(3)]
        self.biases = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
        self.groups = [
            flat_group(self.weights, 48, replicas, rank),
            flat_group(self.biases, 16, replicas, rank),
        ]
        for group in self.groups:
            for parameter, position in group.positions.items():
                parameter.register_post_accumulate_grad_hook(add_to(group.sums[position]))

    def forward(self, hidden: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = (hidden @ weight.T + bias).tanh()
        return hidden.sum()


def add_to(sums: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        sums.add_(parameter.grad.flatten())
        parameter.grad = None

    return add


def noted(name: str, call: Any, notes: list[tuple[str, int, int | None]]) -> Any:
    def note_and_call(*tensors: Tensor, **options: Any) -> Any:
        notes.append((name, tensors[-1].numel(), options.get("dst")))
        return call(*tensors, **options)

    return note_and_call


@contextmanager
def noted_collectives(notes: list[tuple[str, int, int | None]]) -> Iterator[None]:
    """Note name, elements and destination of the collectives of the module under test."""
    with pytest.MonkeyPatch.context() as patches:
        for name in ("reduce", "all_reduce", "reduce_scatter_tensor"):
            patches.setattr(gradient_reduction.dist, name, noted(name, getattr(dist, name), notes))
        yield


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """One rank's step."""

    early: list[tuple[str, int, int | None]]
    """Collectives that started during the last pass."""
    late: list[tuple[str, int, int | None]]
    """Collectives that started after it."""
    own: list[Tensor]
    """Sums of the rank alone, of matrices and of vectors."""
    totals: list[Tensor]
    """This rank's partitions of the totals."""


def reduced(launch: Launch, silent_rank: int) -> Reduced:
    """Take one step of two passes, on two replicas of two tensor ranks.

    On `silent_rank` no gradient is noticed before the end.
    """
    groups = build_groups(2, 1, start_processes(launch, timeout_seconds=60))
    model = Layers(groups.data_rank, groups.data_size)
    kinds = (model.weights, model.biases)
    reduction = GradientReduction(
        model.groups,
        {parameter: layer for kind in kinds for layer, parameter in enumerate(kind)},
        data_group=groups.data_group,
        tensor_group=groups.tensor_group,
        partial_parameters=[model.biases[1]],
        tied_parameters=[],
        range_size=16,
    )
    early: list[tuple[str, int, int | None]] = []
    with noted_collectives(early):
        inputs = [torch.full((1, 4), 0.1 * (at + launch.rank + 1)) for at in range(PASSES)]
        for each in inputs:  # before the step, as in a warm-up
            model(each).backward()
        own = [group.sums.clone() for group in model.groups]
        for group in model.groups:
            group.sums.zero_()
        if launch.rank != silent_rank:
            reduction.begin(PASSES)
        for each in inputs:
            assert not early
            model(each).backward()
    late: list[tuple[str, int, int | None]] = []
    with noted_collectives(late):
        reduction.finish()
        reduction.wait()
    totals = [group.own_sums.clone() for group in model.groups]
    return Reduced(early=early, late=late, own=own, totals=totals)


@pytest.mark.distributed
def test_owners_get_the_totals_in_one_order_of_collectives() -> None:
    silent_rank = 2
    ranks = run_distributed(reduced, 4, silent_rank)

    for rank, seen in enumerate(ranks):
        first, second = rank % 2, rank % 2 + 2  # ranks of both replicas
        # Of layer 2 once layer 1 is reached; of layers 1 and 2 once layer 0 is.
        early = [("reduce", 8, second), ("reduce", 8, first), ("reduce", 16, second)]
        late = [("reduce", 16, first), ("reduce_scatter_tensor", 16, None)]
        partial = [("all_reduce", 4, None)]  # over tensor ranks, with an order of its own
        is_silent = rank == silent_rank
        assert (seen.early, seen.late) == (
            ([], partial + early + late) if is_silent else (early, partial + late)
        )
        for kind, total in enumerate(seen.totals):
            expected = ranks[first].own[kind] + ranks[second].own[kind]
            if kind == 1:  # the vector of layer 1 is summed over all ranks
                expected[4:8] = sum(each.own[kind][4:8] for each in ranks)
            share = slice(0, len(total)) if rank < 2 else slice(len(total), None)
            assert total.allclose(expected[share], rtol=1e-6, atol=0)


def count_again(launch: Launch) -> None:
    """Run more passes than a step has."""
    groups = build_groups(1, 1, start_processes(launch, timeout_seconds=60))
    model = Layers(0, 1)
    kinds = (model.weights, model.biases)
    reduction = GradientReduction(
        model.groups,
        {parameter: layer for kind in kinds for layer, parameter in enumerate(kind)},
        data_group=groups.data_group,
        tensor_group=groups.tensor_group,
        partial_parameters=[],
        tied_parameters=[],
    )
    reduction.begin(PASSES)
    for _ in range(PASSES + 1):
        model(torch.ones(1, 4)).backward()


def test_a_pass_after_the_last_one_is_refused() -> None:
    with pytest.raises(AssertionError, match="layer 2 had 3 backward passes in a step"):
        run_distributed(count_again, 1)
