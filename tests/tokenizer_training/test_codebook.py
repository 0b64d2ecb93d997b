"""Codes start on encoder outputs and unused ones return there, the same on any number of ranks."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.parallel.layout.groups import start_processes
from ernie_vilg.tokenizer_training import codebook as codebook_module
from ernie_vilg.tokenizer_training.codebook import (
    CodebookUpkeep,
    forget_moments,
)
from ernie_vilg.vqgan.quantizers.build import build_quantizer
from ernie_vilg.vqgan.quantizers.quantizer import Quantizer
from tests.distributed import one_process, run_distributed
from tests.tokenizer_training.tokenizer_run import ALONE

BY_DISTANCE = ["nearest", "ema", "normalized", "simvq"]
CODES, EMBEDDING = 6, 3
DRAWN_CODES = torch.tensor([[[0, 1, 1, 4]]])
UNUSED = [2, 3, 5]
MADE = torch.tensor(True)


@pytest.fixture
def alone() -> Iterator[None]:
    with one_process():
        yield


def build(name: str, config: CodebookConfig) -> Quantizer:
    torch.manual_seed(0)
    architecture = ImageTokenizerConfig(
        codebook_size=CODES,
        embedding_size=EMBEDDING,
        quantizer=name,  # type: ignore[arg-type]
    )
    return build_quantizer(architecture, config)


def outputs_of_blobs(pictures: int = 4) -> Tensor:
    """Encoder outputs around as many directions as there are codes."""
    random = torch.Generator().manual_seed(3)
    directions = torch.cat([torch.eye(EMBEDDING), -torch.eye(EMBEDDING)])
    rows = directions.repeat(pictures * 2, 1)  # [pictures * 12, embedding]
    rows = rows + 0.05 * torch.randn(rows.shape, generator=random)
    return rows.view(pictures, 3, 4, EMBEDDING).permute(0, 3, 1, 2)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("name", BY_DISTANCE)
@pytest.mark.usefixtures("alone")
def test_every_code_starts_on_an_output(name: str) -> None:
    quantizer = build(name, CodebookConfig())
    vectors = outputs_of_blobs()

    CodebookUpkeep(quantizer, CodebookConfig()).start(vectors, generator())

    rows = quantizer.to_code_space(vectors.permute(0, 2, 3, 1).reshape(-1, EMBEDDING))
    distances = torch.cdist(quantizer.code_vectors().detach(), rows).amin(dim=1)
    assert distances.tolist() == pytest.approx([0.0] * CODES, abs=1e-3)
    assert quantizer(vectors).codes.unique().tolist() == list(range(CODES))


@pytest.mark.parametrize("name", BY_DISTANCE)
@pytest.mark.usefixtures("alone")
def test_k_means_starts_every_code_on_the_mean_of_its_outputs(name: str) -> None:
    config = CodebookConfig(initialization="kmeans")
    quantizer = build(name, config)
    vectors = outputs_of_blobs()

    CodebookUpkeep(quantizer, config).start(vectors, generator())

    blobs = vectors.permute(0, 2, 3, 1).reshape(-1, CODES, EMBEDDING)
    means = quantizer.to_code_space(blobs.flatten(0, 1)).view_as(blobs).mean(dim=0)
    expected = quantizer.to_code_space(means)
    placed = quantizer.code_vectors().detach()
    nearest = torch.cdist(placed, expected).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(CODES))
    torch.testing.assert_close(placed, expected[nearest])


@pytest.mark.parametrize("name", BY_DISTANCE)
@pytest.mark.usefixtures("alone")
def test_unused_codes_move_to_outputs_and_used_ones_stay(name: str) -> None:
    quantizer = build(name, CodebookConfig())
    moved: list[int] = []
    upkeep = CodebookUpkeep(
        quantizer, CodebookConfig(), lambda indices: moved.extend(indices.tolist())
    )
    before = quantizer.code_vectors().detach().clone()
    upkeep.count(DRAWN_CODES, MADE)
    vectors = outputs_of_blobs()

    count = upkeep.revive(vectors, generator())

    after = quantizer.code_vectors().detach()
    rows = quantizer.to_code_space(vectors.permute(0, 2, 3, 1).reshape(-1, EMBEDDING))
    assert (count, moved) == (3, UNUSED)
    assert torch.equal(after[[0, 1, 4]], before[[0, 1, 4]])
    assert float(torch.cdist(after[UNUSED], rows).amin(dim=1).max()) < 1e-3
    assert set(UNUSED) <= set(quantizer(vectors).codes.unique().tolist())
    assert upkeep.counts.tolist() == [0] * CODES


@pytest.mark.usefixtures("alone")
def test_averages_of_revived_codes_are_reset() -> None:
    quantizer = build("ema", CodebookConfig())
    upkeep = CodebookUpkeep(quantizer, CodebookConfig())
    quantizer.average_counts.fill_(50.0)  # type: ignore[operator, union-attr]
    upkeep.count(DRAWN_CODES, MADE)

    upkeep.revive(outputs_of_blobs(), generator())

    assert quantizer.average_counts.tolist() == [50, 50, 1, 1, 50, 1]  # type: ignore[operator, union-attr]
    assert torch.equal(quantizer.average_sums[UNUSED], quantizer.codebook[UNUSED])  # type: ignore[index]


@pytest.mark.usefixtures("alone")
def test_nothing_moves_while_every_code_is_used() -> None:
    quantizer = build("nearest", CodebookConfig())
    upkeep = CodebookUpkeep(quantizer, CodebookConfig())
    before = quantizer.code_vectors().detach().clone()
    upkeep.count(torch.arange(CODES)[None, None], MADE)

    assert upkeep.revive(outputs_of_blobs(), generator()) == 0

    assert torch.equal(quantizer.code_vectors(), before)
    assert upkeep.counts.tolist() == [0] * CODES


@pytest.mark.usefixtures("alone")
def test_skipped_step_is_not_counted() -> None:
    upkeep = CodebookUpkeep(build("nearest", CodebookConfig()), CodebookConfig())

    upkeep.count(DRAWN_CODES, torch.tensor(False))
    upkeep.count(DRAWN_CODES, MADE)

    assert upkeep.counts.tolist() == [1, 2, 0, 0, 1, 0]


@pytest.mark.usefixtures("alone")
def test_moments_of_moved_codes_alone_are_forgotten() -> None:
    quantizer = build("nearest", CodebookConfig())
    optimizer = AdamW(quantizer.parameters())
    quantizer(outputs_of_blobs()).losses["codebook_loss"].backward()
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[quantizer.code_parameter][name].fill_(1.0)

    forget_moments(optimizer, quantizer, torch.tensor(UNUSED))

    for name in ("exp_avg", "exp_avg_sq"):
        sums = optimizer.state[quantizer.code_parameter][name].sum(dim=1)
        assert sums.tolist() == [3, 3, 0, 0, 3, 0]


@pytest.mark.usefixtures("alone")
def test_codes_chosen_by_logits_are_left_alone_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quantizer = build("gumbel", CodebookConfig())
    upkeep = CodebookUpkeep(quantizer, CodebookConfig(revive_every=1, revive_until=1.0))
    before = quantizer.code_vectors().detach().clone()

    with caplog.at_level(logging.INFO):
        upkeep.start(outputs_of_blobs(), generator())

    assert "codes start at random and are never revived" in caplog.text
    assert torch.equal(quantizer.code_vectors(), before)
    assert not any(upkeep.is_due(step, 10) for step in range(10))


@pytest.mark.parametrize(
    ("every", "until", "due"),
    [
        pytest.param(2, 0.6, [2, 4], id="at intervals, up to the fraction"),
        pytest.param(3, 1.0, [3, 6, 9], id="to the end"),
        pytest.param(0, 1.0, [], id="never"),
    ],
)
@pytest.mark.usefixtures("alone")
def test_steps_after_which_codes_are_revived(every: int, until: float, due: list[int]) -> None:
    config = CodebookConfig(revive_every=every, revive_until=until)
    upkeep = CodebookUpkeep(build("nearest", config), config)

    assert [step for step in range(11) if upkeep.is_due(step, 10)] == due


@pytest.mark.usefixtures("alone")
def test_too_many_outputs_are_thinned_out_evenly_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(codebook_module, "MAX_ROWS_PER_CODE", 1)
    upkeep = CodebookUpkeep(build("nearest", CodebookConfig()), CodebookConfig())
    vectors = torch.arange(12.0).view(1, 1, 3, 4).expand(1, EMBEDDING, 3, 4)

    with caplog.at_level(logging.INFO):
        upkeep.start(vectors, generator())

    assert "codes are chosen among 6 of 12 encoder outputs" in caplog.text
    assert sorted(upkeep.quantizer.code_vectors()[:, 0].tolist()) == [0, 2, 4, 6, 8, 10]


def _train(launch: Launch, name: str, vectors: Tensor) -> dict[str, Any]:
    """Start, take two steps and revive, with this rank's share of the pictures."""
    config = CodebookConfig(
        initialization="kmeans", entropy_weight=0.3, entropy_temperature=0.5, ema_decay=0.5
    )
    quantizer = build(name, config)
    upkeep = CodebookUpkeep(quantizer, config)
    share = vectors.chunk(launch.world_size)[launch.rank].clone()
    upkeep.start(share, generator())
    started = quantizer.code_vectors().detach().clone()
    share.requires_grad_()
    losses: list[dict[str, Tensor]] = []
    for _ in range(2):
        quantized = quantizer(share)
        (sum(quantized.losses.values()) + quantized.vectors.square().mean()).backward()
        losses.append({key: _mean(value.detach()) for key, value in quantized.losses.items()})
        for parameter in quantizer.parameters():
            parameter.grad = _mean(parameter.grad)
            with torch.no_grad():
                parameter -= 0.1 * parameter.grad
        if quantized.statistics is not None:
            dist.all_reduce(quantized.statistics)
            quantizer.update(quantized.statistics, MADE)
        upkeep.count(quantized.codes, MADE)
    trained = {key: value.detach().clone() for key, value in quantizer.state_dict().items()}
    gradients = [value.grad for value in quantizer.parameters()]
    counts = upkeep.total_counts()
    upkeep.load_counts(counts * (torch.arange(CODES) > 2))  # as if codes 0 to 2 were unused
    loaded = upkeep.total_counts()
    moved = upkeep.revive(share, generator())
    # A mean over a share of the batch: each picture counts more by the number of ranks.
    inputs = _gathered(share.grad / launch.world_size)
    return {
        "started": started,
        "losses": losses,
        "trained": trained,
        "gradients": gradients,
        "inputs": inputs,
        "counts": counts,
        "loaded": loaded,
        "moved": moved,
        "revived": quantizer.code_vectors().detach(),
    }


def _mean(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _gathered(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor).contiguous() for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _train_each(launch: Launch, vectors: Tensor) -> dict[str, dict[str, Any]]:
    start_processes(launch, timeout_seconds=60)
    try:
        return {name: _train(launch, name, vectors) for name in BY_DISTANCE}
    finally:
        dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_are_one_with_the_batch_doubled() -> None:
    vectors = outputs_of_blobs() * (1 + torch.arange(4.0).view(4, 1, 1, 1))
    one = _train_each(ALONE, vectors)

    two, other = run_distributed(_train_each, 2, vectors)

    for name in BY_DISTANCE:
        assert torch.equal(two[name]["started"], one[name]["started"]), name
        assert torch.equal(two[name]["counts"], one[name]["counts"]), name
        assert torch.equal(two[name]["loaded"], one[name]["loaded"]), name
        assert two[name]["moved"] == one[name]["moved"] == 3, name
        for key in ("losses", "trained", "gradients", "inputs", "revived"):
            torch.testing.assert_close(
                two[name][key],
                one[name][key],
                rtol=1e-5,
                atol=1e-6,
                msg=lambda text, name=name, key=key: f"{name} {key}: {text}",
            )
        for key in ("trained", "revived"):  # the ranks have one codebook, to the bit
            torch.testing.assert_close(other[name][key], two[name][key], rtol=0, atol=0)
