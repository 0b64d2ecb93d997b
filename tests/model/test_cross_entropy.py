"""The cross-entropy equals torch's, in any chunks, and on a vocabulary that is split over ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ernie_vilg.config.launch import Launch
from ernie_vilg.model import cross_entropy
from ernie_vilg.model.cross_entropy import VocabularySplit, vocab_cross_entropy
from tests.distributed import run_distributed

ROWS, VOCABULARY = 12, 40
WEIGHTS = torch.linspace(-1, 2, ROWS).view(3, 4)
Z_WEIGHT = 1e-3

Result = tuple[Tensor, Tensor, Tensor]
"""Losses, log partitions, and the gradient of the logits."""


def logits_and_targets(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 4, VOCABULARY, generator=generator)
    targets = torch.randint(0, VOCABULARY, (3, 4), generator=generator)
    targets[0, 0], logits[0, 0] = 7, 10.0 * (torch.arange(VOCABULARY) == 7)  # all but certain
    return logits.to(dtype), targets


def differentiated(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], logits: Tensor, targets: Tensor
) -> Result:
    """Differentiate a weighted sum of the losses and squared log partitions, as a z-loss does."""
    logits = logits.clone().requires_grad_()
    losses, partitions = function(logits, targets)
    weights = WEIGHTS.to(losses)
    (losses * weights + Z_WEIGHT * partitions.square()).sum().backward()
    assert logits.grad is not None
    return losses.detach(), partitions.detach(), logits.grad


def torchs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape), logits.logsumexp(dim=-1)


@pytest.mark.parametrize(
    ("dtype", "relative"),
    [
        pytest.param(torch.float32, 2**-22, id="float32"),
        pytest.param(torch.bfloat16, 2**-8, id="bfloat16, rounded once"),
        pytest.param(torch.float16, 2**-11, id="float16, rounded once"),
    ],
)
def test_losses_and_gradients_are_those_of_float64(dtype: torch.dtype, relative: float) -> None:
    logits, targets = logits_and_targets(dtype)

    losses, partitions, gradient = differentiated(vocab_cross_entropy, logits, targets)
    expected = differentiated(torchs, logits.double(), targets)

    assert losses.dtype == partitions.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(losses.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(partitions.double(), expected[1], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient.double(), expected[2], rtol=relative, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 5 * VOCABULARY, 1 << 22])
def test_no_chunk_and_no_other_row_changes_a_bit(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's values do not depend on the rows that share its micro-batch."""
    logits, targets = logits_and_targets(torch.bfloat16)
    whole = differentiated(vocab_cross_entropy, logits, targets)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", elements)

    chunked = differentiated(vocab_cross_entropy, logits, targets)
    first, _ = vocab_cross_entropy(logits[:1, :2], targets[:1, :2])

    assert all(map(torch.equal, chunked, whole))
    assert first.equal(whole[0][:1, :2])


def test_what_is_impossible_has_probability_zero() -> None:
    logits = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], requires_grad=True)

    losses, partitions = vocab_cross_entropy(logits, torch.tensor([0, 0]))
    losses[0].backward()

    assert losses.tolist() == [0.0, torch.inf]
    assert partitions.tolist() == [0.0, 0.0]
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_nan_stays_nan() -> None:
    logits = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [0.0, 0.0]])

    losses, _ = vocab_cross_entropy(logits, torch.tensor([1, 0, 0]))

    assert losses.isnan().tolist() == [True, True, False]


def test_no_float32_copy_of_the_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the logits there is their gradient, and a few chunks."""
    rows, vocabulary, chunk = 256, 1024, 1 << 12
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", chunk)
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.int64)

    peak = peak_bytes(lambda: vocab_cross_entropy(logits, targets)[0].sum().backward())

    per_row = 4 * 16
    assert peak <= 2 * rows * vocabulary + 4 * 4 * chunk + per_row * rows


def peak_bytes(function: Callable[[], Any]) -> int:
    """Return the most bytes that a function has allocated at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    results: Any = profiler.profiler
    events = [each for each in results.kineto_results.events() if each.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = logits_and_targets(dtype)
    expected = differentiated(vocab_cross_entropy, logits, targets)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    torch.use_deterministic_algorithms(True)

    try:
        found = differentiated(vocab_cross_entropy, logits.cuda(), targets.cuda())
    finally:
        torch.use_deterministic_algorithms(False)

    for one, other in zip(found, expected, strict=True):
        rtol = 2 * torch.finfo(one.dtype).eps
        torch.testing.assert_close(one.cpu(), other, rtol=max(rtol, 1e-6), atol=1e-6)


def split_result(launch: Launch, dtype: torch.dtype) -> tuple[Result, int]:
    """Compute this rank's part, and count the reductions."""
    dist.init_process_group("gloo", rank=launch.rank, world_size=launch.world_size)
    reductions = []

    def reduced(operation: Any) -> Callable[[Tensor], Tensor]:
        def reduce(values: Tensor) -> Tensor:
            reductions.append(operation)
            result = values.clone()
            dist.all_reduce(result, op=operation)
            return result

        return reduce

    split = VocabularySplit(
        rank=launch.rank, maximum=reduced(dist.ReduceOp.MAX), total=reduced(dist.ReduceOp.SUM)
    )
    logits, targets = logits_and_targets(dtype)
    logits[1] -= torch.where(torch.arange(VOCABULARY) < VOCABULARY // 2, torch.inf, 0.0)
    part = logits.chunk(launch.world_size, dim=-1)[launch.rank]
    cross_entropy.CHUNK_ELEMENTS = 2 * VOCABULARY  # several chunks
    result = differentiated(
        lambda mine, ids: vocab_cross_entropy(mine, ids, split), part.contiguous(), targets
    )
    dist.destroy_process_group()
    return result, len(reductions)


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_split_vocabulary_gives_the_same_with_two_reductions(dtype: torch.dtype) -> None:
    """Also where all that is possible is in the other rank's part."""
    logits, targets = logits_and_targets(dtype)
    logits[1] -= torch.where(torch.arange(VOCABULARY) < VOCABULARY // 2, torch.inf, 0.0)
    whole = differentiated(vocab_cross_entropy, logits, targets)

    parts = run_distributed(split_result, 2, dtype)

    assert [count for _, count in parts] == [2, 2]
    for (losses, partitions, _), _ in parts:
        torch.testing.assert_close(losses, whole[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(partitions, whole[1], rtol=1e-6, atol=0.0)
    gradient = torch.cat([part[2] for part, _ in parts], dim=-1)
    torch.testing.assert_close(gradient, whole[2], rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
