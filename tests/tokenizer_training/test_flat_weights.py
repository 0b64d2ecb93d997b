"""Flat weights step as torch's AdamW does on the network's own parameters."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.tokenizer_training.flat_weights import FlatWeights
from ernie_vilg.tokenizer_training.update import NetworksUpdate
from tests.distributed import one_process

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
MADE = torch.tensor(0.0)
SKIPPED = torch.tensor(1.0)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.SiLU(), nn.Conv2d(5, 2, 1))


def loss_of(network: nn.Module, seed: int) -> Tensor:
    pictures = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    output: Tensor = network(pictures)
    return 100 * output.square().mean()  # a gradient that is clipped


def test_parameters_and_gradients_are_views_with_the_values_of_before() -> None:
    network, plain = small_network(), small_network()

    flat = FlatWeights(network, CONFIG, ema_decay=0.0)
    loss_of(network, 0).backward()
    loss_of(plain, 0).backward()

    parts = {(name, kind): value for name, kind, value in flat.tensors()}
    for (name, parameter), (_, other) in zip(
        network.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert parameter.equal(other)
        assert other.grad is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, other.grad)
        assert parts[name, "weight"].data_ptr() == parameter.data_ptr()
    kernel = network[0].weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    flat.clear_gradients()
    assert not any(each.grad.any() for each in network.parameters() if each.grad is not None)


def test_updates_are_those_of_adamw_with_clipping() -> None:
    network, plain = small_network(), small_network()
    flat = FlatWeights(network, CONFIG, ema_decay=0.0)
    kernels = [each for each in plain.parameters() if each.dim() == 4]
    others = [each for each in plain.parameters() if each.dim() != 4]
    reference = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    update = NetworksUpdate(torch.device("cpu"), gradient_clipping=1.0)
    with one_process():
        for step in range(3):
            update.begin_step(2)
            flat.clear_gradients()
            reference.zero_grad()
            for micro_batch in range(2):
                loss_of(network, 2 * step + micro_batch).backward()
                (loss_of(plain, 2 * step + micro_batch) / 2).backward()
            update.add(flat, learning_rate=0.01)
            norms = update.norms()
            update.apply(MADE, norms[1])
            norm = clip_grad_norm_(plain.parameters(), 1.0)
            reference.step()
            assert norm > 1
            assert float(norms[0]) == pytest.approx(float(norm), rel=1e-6)

    for parameter, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


def test_a_skipped_update_changes_nothing() -> None:
    flat = FlatWeights(small_network(), CONFIG, ema_decay=0.9)
    loss_of(flat.network, 0).backward()
    flat.step(0.1, None, MADE)
    before = copy.deepcopy(flat.state())

    loss_of(flat.network, 1).backward()
    flat.gradients[0][0] = torch.nan
    flat.step(0.1, None, SKIPPED)

    after = flat.state()
    assert after.pop("updates").equal(before.pop("updates"))
    for kind, values in before.items():
        for name, value in values.items():
            assert after[kind][name].equal(value), (kind, name)


def test_rows_that_were_set_start_afresh() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Embedding(4, 2))
    flat = FlatWeights(network, CONFIG, ema_decay=0.9)
    table = network[1].weight
    (table.square().sum() + network[0].weight.sum()).backward()
    flat.step(0.1, None, MADE)
    with torch.no_grad():
        table[1:3] = torch.tensor([[7.0, 8.0], [9.0, 10.0]])
    before = {kind: value.clone() for name, kind, value in flat.tensors() if name == "1.weight"}

    flat.restart_rows(table, torch.tensor([1, 2]))

    after = {kind: value for name, kind, value in flat.tensors() if name == "1.weight"}
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not after[moment][1:3].any()
        assert before[moment].all()
        assert after[moment][[0, 3]].equal(before[moment][[0, 3]])
    assert after["weight_average"].tolist()[1:3] == [[7.0, 8.0], [9.0, 10.0]]
    assert after["weight_average"][[0, 3]].equal(before["weight_average"][[0, 3]])


@pytest.mark.parametrize(
    ("saved", "loaded", "has_average"),
    [
        pytest.param(0.9, 0.9, True, id="an average that goes on"),
        pytest.param(0.9, 0.0, False, id="an average that is kept no more"),
        pytest.param(0.0, 0.9, False, id="an average that starts after the next step"),
    ],
)
def test_a_state_is_loaded_with_the_average_that_the_settings_keep(
    saved: float, loaded: float, has_average: bool
) -> None:
    first = FlatWeights(small_network(), CONFIG, ema_decay=saved)
    for seed in range(2):
        first.clear_gradients()
        loss_of(first.network, seed).backward()
        first.step(0.1, None, MADE)
    state = copy.deepcopy(first.state())

    second = FlatWeights(small_network(), CONFIG, ema_decay=loaded)
    second.load(state)

    assert bool(second.average()) == has_average
    expected = {(name, kind): value for name, kind, value in first.tensors()}
    for name, kind, value in second.tensors():
        assert value.equal(expected[name, kind])
    assert second.state()["updates"].tolist() == [2.0, 2.0]
    loss_of(second.network, 3).backward()
    second.step(0.1, None, MADE)
    assert bool(second.average()) == (loaded > 0)
