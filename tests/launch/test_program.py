"""What a program makes of its words: settings, or one message."""

import subprocess
import sys

import pytest

from launch.program import CONF_FOLDER, quote_chinese

ROOT = CONF_FOLDER.parent


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("prompts=[左上角，圆形,b]", 'prompts=["左上角，圆形",b]'),
        ("output_dir=输出/a", 'output_dir="输出/a"'),
        ("prompts=[红 苹果]", 'prompts=["红 苹果"]'),
        ("prompts=['红']", "prompts=['红']"),
        ("steps=3", "steps=3"),
        ("--help", "--help"),
    ],
)
def test_chinese_is_quoted_for_hydra(word: str, expected: str) -> None:
    assert quote_chinese(word) == expected


def start(words: list[str], *, rank: int, world_size: int) -> subprocess.CompletedProcess[str]:
    """Start one rank of a pretraining run as a launcher would."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    return subprocess.run(
        [sys.executable, "launch/pretrain.py", "experiment=quickstart", *words],
        cwd=ROOT,
        env={"PATH": "", **place},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "world_size", "message"),
    [
        pytest.param(["training.step=3"], 1, "Key 'step' not in 'TrainingConfig'", id="mistyped"),
        pytest.param(["training.steps=x"], 1, "could not be converted to Integer", id="type"),
        pytest.param(
            ["parallelism.tensor_parallel_size=2"],
            3,
            "world size 3 is no multiple of parallelism.tensor_parallel_size=2",
            id="world size",
        ),
        pytest.param(
            ["parallelism.tensor_parallel_size=8"],
            8,
            "model.num_heads=4 is not divisible by parallelism.tensor_parallel_size=8",
            id="heads",
        ),
        pytest.param(
            ["parallelism.pipeline_parallel_size=2", "parallelism.zero_stage=2"],
            2,
            "set parallelism.zero_stage=1",
            id="ZeRO 2 under a pipeline",
        ),
        pytest.param(
            ["parallelism.global_batch_size=50"],
            2,
            "set parallelism.global_batch_size=32 or 64",
            id="global batch",
        ),
        pytest.param(
            ["model.num_heads=5"], 1, "model.num_heads=5 does not divide", id="heads of width"
        ),
        pytest.param(["data.token_shards=nowhere"], 1, "nowhere is not a folder", id="path"),
        pytest.param(["optimizer.learning_rate=-1"], 1, "must be above 0", id="negative rate"),
    ],
)
def test_a_wrong_setting_is_one_message_before_anything_starts(
    words: list[str], world_size: int, message: str
) -> None:
    result = start(words, rank=0, world_size=world_size)

    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_only_the_leader_speaks() -> None:
    result = start(["data.token_shards=nowhere"], rank=1, world_size=2)

    assert (result.returncode, result.stderr) == (2, "")
