"""Whole weights come out of every layout: alive, and from its checkpoint."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches import Batch
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine import CHECKPOINT_TAG
from ernie_vilg.parallel.gather import gather_to_leader
from ernie_vilg.parallel.universal import gather_weights, universal_checkpoint_info
from tests.distributed import run_distributed
from tests.training.runs import MODEL, start, tiny_run


def gather(launch: Launch, config: PretrainConfig, folder: str) -> Any:
    """Take a step and save it; return the leader's whole weights, None on other ranks."""
    engine = start(launch, config, torch.float32)
    batch = Batch(text=torch.tensor([[4, 5, 3]] * 2), codes=torch.tensor([[1, 2, 3, 4]] * 2))
    engine.train_batch([batch] * engine.num_micro_batches, learning_rate=1e-2)
    engine.save(Path(folder))
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


def test_every_split_weight_is_named_to_the_converter() -> None:
    """A name missing from its patterns would be put together along the wrong dimension."""
    info = universal_checkpoint_info()
    for name, _ in build_transformer(MODEL).named_parameters():
        replicated = [p for p in info["tp_replicated_parameter_patterns"] if re.match(p, name)]
        by_row = [p for p in info["parameter_with_row_parallelism_patterns"] if re.match(p, name)]
        expected = {None: (1, 0), 0: (0, 0), 1: (0, 1)}[split_dimension(name)]
        assert (len(replicated), len(by_row)) == expected, name
