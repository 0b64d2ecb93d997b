"""The average of the weights is the same under every layout and after a restart."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.state.consolidate import gather_weights
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import HALFWAY, STEPS, run_config, take_steps

EMA_DECAY = 0.3
DECAYS = (3 / 12, 0.3, 0.3)  # decays of steps 2 to 4; the average starts at step 1


def saved_average(folder: Path) -> dict[str, torch.Tensor]:
    return gather_weights(folder / str(STEPS) / CHECKPOINT_TAG, WEIGHT_AVERAGE)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Compute the average from the weights of one process that keeps none itself."""
    folder = tmp_path_factory.mktemp("one process")
    result = run_distributed(take_steps, 1, run_config(folder), torch.float32, folder)[0]
    average = result.weights[0]
    for decay, weights in zip(DECAYS, result.weights[1:], strict=True):
        average = {
            name: decay * value + (1 - decay) * weights[name] for name, value in average.items()
        }
    return average


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        pytest.param(1, {}, id="one process"),
        pytest.param(2, {"zero_stage": 3}, id="data 2, ZeRO 3"),
        pytest.param(
            4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, id="tensor 2, pipeline 2"
        ),
        pytest.param(4, {"tensor_parallel_size": 2, "zero_stage": 2}, id="tensor 2, ZeRO 2"),
    ],
)
def test_every_layout_saves_the_average_of_one_process(
    tmp_path: Path, expected: dict[str, torch.Tensor], world_size: int, layout: dict[str, Any]
) -> None:
    config = run_config(tmp_path, ema_decay=EMA_DECAY, **layout)

    run_distributed(take_steps, world_size, config, torch.float32, tmp_path)
    average = saved_average(tmp_path)

    assert set(average) == set(expected)
    for name, value in expected.items():
        # The order of sums changes a few units of float32 in each of four steps.
        torch.testing.assert_close(average[name].view(value.shape), value, rtol=0, atol=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("precision", "layout"),
    [
        pytest.param(torch.bfloat16, {}, id="data 2, ZeRO 1, bf16"),
        pytest.param(torch.float32, {"zero_stage": 3}, id="data 2, ZeRO 3, fp32"),
        pytest.param(torch.bfloat16, {"pipeline_parallel_size": 2}, id="pipeline 2, bf16"),
    ],
)
def test_a_resumed_run_has_the_average_of_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, precision: torch.dtype, layout: dict[str, Any]
) -> None:
    config = run_config(tmp_path, ema_decay=EMA_DECAY, **layout)

    run_distributed(take_steps, 2, config, precision, tmp_path)
    whole = saved_average(tmp_path)
    (tmp_path / str(STEPS)).rename(tmp_path / "of the uninterrupted run")
    run_distributed(take_steps, 2, config, precision, tmp_path, HALFWAY)
    resumed = saved_average(tmp_path)

    assert set(resumed) == set(whole)
    for name, value in whole.items():
        assert resumed[name].equal(value), name


def test_a_checkpoint_without_an_average_says_how_to_get_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint" / CHECKPOINT_TAG
    folder.mkdir(parents=True)
    state = {"state": {0: {"exp_avg": torch.zeros(1)}}}
    torch.save(
        {"optimizer_state_dict": {"base_optimizer_state": state}}, folder / "0_optim_states.pt"
    )

    with pytest.raises(ValueError, match=r"average=false, or train on with training\.ema_decay"):
        gather_weights(folder, WEIGHT_AVERAGE)
