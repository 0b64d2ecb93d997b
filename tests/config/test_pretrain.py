"""Settings that cannot work together are refused with a fix."""

from dataclasses import replace
from typing import Any

import pytest

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.model import ModelConfig, ObjectiveConfig, ReconstructorConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import (
    ParallelismConfig,
    PretrainConfig,
    TrainingConfig,
)
from ernie_vilg.errors import InputError

MODEL = ModelConfig(
    hidden_size=24,
    num_layers=2,
    num_heads=3,
    text_vocab_size=36,
    text_length=5,
    codebook_size=24,
    image_grid_size=2,
)


GPU = GpuConfig(
    name="NVIDIA A100",
    memory_bytes=1.0,
    peak_flops=1.0,
    matrix_efficiency=1.0,
    memory_bandwidth=1.0,
    node_bandwidth=1.0,
    network_bandwidth=1.0,
    host_bandwidth=1.0,
    host_memory_bytes=1.0,
    host_memory_bandwidth=1.0,
    dollars_per_hour=1.0,
)
FP8_MODEL = {"hidden_size": 32, "num_heads": 4, "num_layers": 3, "text_length": 4}
"""Changes to the model that 8-bit products need: multiples of 16, and a block between the ends."""


def run_with(model: dict[str, Any], layout: dict[str, Any], **settings: Any) -> PretrainConfig:
    sizes = {"micro_batch_size": 1, "global_batch_size": 8, **layout}
    return PretrainConfig(
        run_dir="unused",
        model=replace(MODEL, **model),
        data=PretrainDataConfig(token_shards="", text_tokenizer="", image_tokenizer=""),
        parallelism=ParallelismConfig(**sizes),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
        training=TrainingConfig(steps=1),
        checkpoint=CheckpointConfig(every=1),
        **settings,
    )


@pytest.mark.parametrize(
    ("model", "layout", "settings", "fix"),
    [
        pytest.param(
            {},
            {"tensor_parallel_size": 2},
            {},
            "set model.num_heads to a multiple of 2",
            id="heads and tensor parallelism",
        ),
        pytest.param(
            {"num_heads": 4, "text_vocab_size": 37},
            {"tensor_parallel_size": 2},
            {},
            "set model.text_vocab_size to a multiple of 2",
            id="vocabulary and tensor parallelism",
        ),
        pytest.param(
            {},
            {"pipeline_parallel_size": 3},
            {},
            "every stage needs a layer",
            id="more stages than layers",
        ),
        pytest.param(
            {},
            {"pipeline_parallel_size": 2, "zero_stage": 2},
            {},
            "set parallelism.zero_stage=1",
            id="ZeRO 2 and a pipeline",
        ),
        pytest.param(
            {},
            {"sequence_parallel": True},
            {},
            "raise their number or set it to false",
            id="sequence parallelism alone",
        ),
        pytest.param(
            # 2 directions x 1 pair x 9 slots = 18 tokens
            {"hidden_size": 32, "num_heads": 4, "codebook_size": 24, "text_vocab_size": 36},
            {"tensor_parallel_size": 4, "sequence_parallel": True},
            {},
            "set parallelism.micro_batch_size to a multiple",
            id="tokens and sequence parallelism",
        ),
        pytest.param(
            {},
            {"zero_stage": 3},
            {"compile_blocks": True},
            "set compile_blocks=false or parallelism.zero_stage=1 or 2",
            id="compiled blocks and ZeRO 3",
        ),
        pytest.param(
            {"block_gradient_scale": 1024.0},
            {},
            {"precision": "bf16"},
            "set precision=fp16 or the scale to 1",
            id="gradient scaling without float16",
        ),
        pytest.param(
            {}, {}, {"world_size": 64}, "add dry_run=true", id="a world size that is not planned"
        ),
        pytest.param({}, {}, {"precision": "fp8"}, "choose auto, bf16, fp16 or fp32", id="fp8"),
        pytest.param(
            {},
            {"activation_checkpointing": "some"},
            {},
            "choose none, selective or full",
            id="unknown checkpointing",
        ),
    ],
)
def test_illegal_combination_is_refused_with_the_fix(
    model: dict[str, Any], layout: dict[str, Any], settings: dict[str, Any], fix: str
) -> None:
    with pytest.raises(ValueError, match=fix):
        run_with(model, layout, **settings)


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ({"attention": "local"}, "choose full or sparse"),
        ({"row_pattern": "zigzag"}, "choose raster or block"),
        ({"residual_scaling": "depth"}, "choose none, initializer or branch"),
        ({"convolution_size": 4}, "choose an odd number"),
        ({"dropout": 1.0}, "must be at least 0 and below 1"),
        ({"pb_relax": -1.0}, "must be at least 0"),
        ({"block_gradient_scale": 1000.0}, "choose a power of two"),
    ],
)
def test_model_setting_out_of_range_is_refused(setting: dict[str, Any], fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        replace(MODEL, **setting)


@pytest.mark.parametrize(
    "setting", [{"kind": "three_stage"}, {"hidden_position": "between"}], ids=str
)
def test_unknown_reconstructor_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model\.reconstructor.*choose"):
        ReconstructorConfig(**setting)


def test_negative_weight_of_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.z_loss_weight=-1.*must be at least 0"):
        ObjectiveConfig(z_loss_weight=-1.0)


def test_ema_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.ema_decay=1"):
        TrainingConfig(steps=1, ema_decay=1.0)


def test_one_more_image_slot_where_the_last_code_is_an_input() -> None:
    reconstructor = ReconstructorConfig(kind="end_to_end", hidden_position="input")

    assert replace(MODEL, reconstructor=reconstructor).num_image_slots == 5
    assert MODEL.num_image_slots == MODEL.num_image_tokens == 4


@pytest.mark.parametrize(
    ("model", "layout", "settings", "fix"),
    [
        pytest.param({}, {}, {"precision": "fp32"}, "set precision=bf16", id="float32"),
        pytest.param({}, {}, {"precision": "fp16"}, "set precision=bf16", id="float16"),
        pytest.param({}, {}, {"gpu": GPU}, "another gpu such as h100-80gb", id="a GPU without"),
        pytest.param(
            {"num_layers": 2}, {}, {}, "so none would change, set linear_precision=same", id="ends"
        ),
        pytest.param({"hidden_size": 24}, {}, {}, "must be a multiple of 16 ", id="width"),
        pytest.param(
            {"hidden_size": 48}, {"tensor_parallel_size": 2}, {}, "a multiple of 32", id="a part"
        ),
        pytest.param({"text_length": 5}, {}, {}, "set it to a multiple of 8", id="tokens"),
    ],
)
def test_8_bit_products_are_refused_where_they_cannot_run(
    model: dict[str, Any], layout: dict[str, Any], settings: dict[str, Any], fix: str
) -> None:
    legal = {"linear_precision": "fp8", "precision": "bf16", "gpu": replace(GPU, float8=True)}
    sizes = {"micro_batch_size": 1, "global_batch_size": 8}
    run_with(FP8_MODEL, sizes, **legal)

    with pytest.raises(InputError, match=fix):
        run_with({**FP8_MODEL, **model}, {**sizes, **layout}, **{**legal, **settings})
