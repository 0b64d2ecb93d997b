"""Whole weights are gathered from every layout, in training and from its checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.model.initialization import original_name
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG
from ernie_vilg.parallel.state.consolidate import gather_weights
from ernie_vilg.parallel.state.gather import gather_to_leader
from tests.distributed import run_distributed
from tests.parallel.saved import save_to
from tests.training.runs import MODEL, start, tiny_run


def gather(launch: Launch, config: PretrainConfig, folder: str) -> Any:
    """Take a step and save it; return the leader's whole weights, None on other ranks."""
    engine = start(launch, config, torch.float32)
    batch = Batch(text=torch.tensor([[4, 5, 3]] * 2), codes=torch.tensor([[1, 2, 3, 4]] * 2))
    engine.train_batch([batch] * engine.num_micro_batches, learning_rate=1e-2)
    save_to(engine, Path(folder))
    return gather_to_leader(engine)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        pytest.param(1, {}, id="one process"),
        pytest.param(2, {"zero_stage": 3}, id="data 2, ZeRO 3"),
        pytest.param(2, {"pipeline_parallel_size": 2}, id="pipeline 2"),
        pytest.param(4, {"tensor_parallel_size": 2, "zero_stage": 2}, id="tensor 2, ZeRO 2"),
        pytest.param(4, {"tensor_parallel_size": 2, "zero_stage": 3}, id="tensor 2, ZeRO 3"),
    ],
)
def test_checkpoint_and_live_model_give_the_same_whole_weights(
    tmp_path: Path, world_size: int, layout: dict[str, int]
) -> None:
    config = tiny_run(tmp_path, steps=1, **layout)
    folder = tmp_path / "checkpoint"

    alive, *others = run_distributed(gather, world_size, config, str(folder))
    saved = gather_weights(folder / CHECKPOINT_TAG)

    shapes = {name: value.shape for name, value in build_transformer(MODEL).named_parameters()}
    assert others == [None] * (world_size - 1)
    assert set(alive) == set(saved) == set(shapes)
    for name, shape in shapes.items():
        assert alive[name].shape == shape, name
        assert saved[name].view(shape).equal(alive[name]), name


@pytest.mark.distributed
def test_tied_weights_of_first_and_last_stage_stay_equal(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=1, pipeline_parallel_size=2)
    config = replace(config, model=replace(MODEL, tied_embeddings=True))
    folder = tmp_path / "checkpoint"

    alive, _ = run_distributed(gather, 2, config, str(folder))

    tied = {name: original_name(name, config.model) for name in alive}
    assert sum(name != original for name, original in tied.items()) == 2
    for name, original in tied.items():
        assert alive[name].equal(alive[original])
