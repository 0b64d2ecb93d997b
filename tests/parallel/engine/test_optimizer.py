"""AdamW's average of the weights follows its formula."""

import pytest
import torch
from torch import nn

from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE, build_adamw, group_of

SETTINGS = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)


def adamw(weight: nn.Parameter, ema_decay: float) -> torch.optim.AdamW:
    return build_adamw([group_of([weight], SETTINGS.weight_decay)], SETTINGS, ema_decay)


def test_the_average_follows_the_weights_with_a_growing_decay() -> None:
    weight = nn.Parameter(torch.tensor([7.0]))
    optimizer = adamw(weight, ema_decay=0.3)
    optimizer.param_groups[0]["lr"] = 0.0  # the test sets the weights
    averages = []
    for value in (10.0, 20.0, 0.0, 4.0):
        weight.data.fill_(value)
        weight.grad = torch.tensor([1.0])
        optimizer.step()
        averages.append(optimizer.state[weight][WEIGHT_AVERAGE].item())

    # Decays: none, 3/12, then 4/13 and 5/14, both above 0.3.
    assert averages == pytest.approx([10.0, 17.5, 5.25, 0.3 * 5.25 + 0.7 * 4.0])


def test_the_average_does_not_change_the_weights() -> None:
    plain, averaged = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    for weight, ema_decay in ((plain, 0.0), (averaged, 0.9)):
        optimizer = adamw(weight, ema_decay)
        for gradient in ([0.5, 1.0], [-1.0, 3.0]):
            weight.grad = torch.tensor(gradient)
            optimizer.step()

    assert plain.equal(averaged)


def test_no_decay_builds_the_plain_optimizer() -> None:
    optimizer = adamw(nn.Parameter(torch.zeros(1)), ema_decay=0.0)

    assert type(optimizer) is torch.optim.AdamW


def test_a_run_resumed_without_decay_drops_the_average() -> None:
    """A kept average would go stale and could be exported later."""
    weight = nn.Parameter(torch.zeros(1))
    averaging, plain = adamw(weight, ema_decay=0.9), adamw(weight, ema_decay=0.0)
    weight.grad = torch.ones(1)
    averaging.step()

    plain.load_state_dict(averaging.state_dict())

    assert set(averaging.state[weight]) == {"step", "exp_avg", "exp_avg_sq", WEIGHT_AVERAGE}
    assert set(plain.state[weight]) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_run_resumed_with_decay_starts_its_average() -> None:
    weight = nn.Parameter(torch.zeros(1))
    plain, averaging = adamw(weight, ema_decay=0.0), adamw(weight, ema_decay=0.9)
    weight.grad = torch.ones(1)
    plain.step()

    averaging.load_state_dict(plain.state_dict())
    averaging.step()

    assert averaging.state[weight][WEIGHT_AVERAGE].equal(weight.detach())
