"""The shards of every layout add up to the paper's 10B model and equal megatron-core's."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.layout.groups import build_groups
from ernie_vilg.planning.rank_layers import rank_layers
from ernie_vilg.planning.stage_shards import StageShard, stage_shards
from launch.support.composition import compose_program
from tests.distributed import run_distributed

SIZES = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    config: ModelConfig = compose_program("pretrain", ["experiment=ernie_vilg_10b"]).model
    return config


@pytest.fixture(scope="module")
def whole(model: ModelConfig) -> dict[str, list[int]]:
    return shapes_on_meta(model)


def shapes_on_meta(model: ModelConfig, **layers: Any) -> dict[str, list[int]]:
    with torch.device("meta"):
        parameters = build_transformer(model, **layers).named_parameters()
    return {name: list(parameter.shape) for name, parameter in parameters}


def stages_of(model: ModelConfig, tensor: int, pipeline: int) -> list[StageShard]:
    layout = ParallelismConfig(
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        micro_batch_size=1,
        global_batch_size=1,
    )
    return stage_shards(model, layout)


def test_the_10b_model_has_the_papers_size(model: ModelConfig) -> None:
    num_parameters = stages_of(model, tensor=1, pipeline=1)[0].num_parameters

    blocks = 12 * 48 * 4096**2
    vocabularies = 2 * (32768 + 8192) * 4096  # embeddings and output projections
    assert num_parameters == pytest.approx(blocks + vocabularies, rel=0.01)
    assert num_parameters == pytest.approx(10e9, rel=0.01)


@pytest.mark.parametrize("pipeline", SIZES)
@pytest.mark.parametrize("tensor", SIZES)
def test_shards_of_a_layout_make_up_the_whole(
    model: ModelConfig, whole: dict[str, list[int]], tensor: int, pipeline: int
) -> None:
    stages = stages_of(model, tensor, pipeline)

    assert len(stages) == pipeline
    assert [index for stage in stages for index in stage.layers] == list(range(50))
    together: dict[str, list[int]] = {}
    for name, shape in itertools.chain(*(stage.shapes.items() for stage in stages)):
        assert name not in together, f"{name} is on two stages"
        together[name] = list(shape)
        dimension = split_dimension(name)
        if dimension is not None:
            together[name][dimension] *= tensor
    assert together == whole


def test_layers_are_on_the_stage_that_names_them(model: ModelConfig) -> None:
    for stage in stages_of(model, tensor=1, pipeline=8):
        assert {int(name.split(".")[0]) for name in stage.shapes} == set(stage.layers)


def test_stages_of_the_10b_model_cost_about_the_same(model: ModelConfig) -> None:
    costs = [stage.flops for stage in stages_of(model, tensor=1, pipeline=8)]

    assert max(costs) / (sum(costs) / 8) < 1.03


def test_tied_weights_are_counted_once_without_a_pipeline(model: ModelConfig) -> None:
    tied = replace(model, tied_embeddings=True)

    saved = (
        stages_of(model, tensor=2, pipeline=1)[0].num_parameters
        - stages_of(tied, tensor=2, pipeline=1)[0].num_parameters
    )

    assert saved == (32768 + 8192) * 4096 // 2


@pytest.mark.distributed
def test_shards_have_the_shapes_of_megatron_core(model: ModelConfig) -> None:
    with_everything = replace(
        model,
        num_layers=2,
        qk_norm=True,
        sandwich_norm=True,
        reconstructor=ReconstructorConfig(kind="end_to_end", decoder=ImageTokenizerConfig()),
    )

    (theirs,) = run_distributed(_megatron_shapes, 1, with_everything)

    for size, shapes in theirs.items():
        assert shapes == shapes_on_meta(with_everything, layers=rank_layers(size))


def _megatron_shapes(_launch: Launch, model: ModelConfig) -> dict[int, dict[str, list[int]]]:
    """Return the shapes of the first of 8 fake ranks by tensor parallelism."""
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from ernie_vilg.parallel.engine.tensor_parallel import tensor_parallel_layers

    shapes = {}
    for size in (2, 4, 8):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
        # Without gloo groups, which would wait for the other ranks.
        parallel_state.initialize_model_parallel(size, create_gloo_process_groups=False)
        groups = build_groups(size, 1, torch.device("cpu"))
        layout = ParallelismConfig(
            tensor_parallel_size=size, micro_batch_size=1, global_batch_size=8
        )
        shapes[size] = shapes_on_meta(model, layers=tensor_parallel_layers(groups, layout))
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    return shapes
