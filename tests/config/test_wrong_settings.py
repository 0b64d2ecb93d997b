"""A wrong setting is refused by its name, before anything starts.

Pipeline stages may have different numbers of layers (tests/parallel/test_partition.py), so only
more stages than layers are refused.
"""

import dataclasses
import math
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.data import MixtureDataSetConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import check
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER

ROOT = CONF_FOLDER.parent

MAY_BE_ZERO = {
    "data.loader.num_workers",  # read in the rank itself
    "data.seed",
    "data.max_truncated_fraction",  # no caption may be truncated
    "training.seed",
    "training.ema_decay",  # no average
    "model.codebook_std",  # codes start apart
    "model.lora.rank",  # no adapters
    "model.segment_std",  # source and target start alike
    "optimizer.final_learning_rate_fraction",
    "optimizer.warmup_steps",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.weight_decay",
    "optimizer.gradient_clipping",  # none
    "objective.text_to_image_weight",  # one of the two
    "objective.image_to_text_weight",
    "objective.z_loss_weight",
    "objective.reconstruction_weight",
    "objective.absolute_error_weight",
    "objective.squared_error_weight",
    "model.dropout",
    "model.pb_relax",  # off
    "checkpoint.keep_every",  # keeps none forever
    "checkpoint.max_failed_saves",
    "validation.every",  # never
    "validation.patience",  # all steps are made
    "samples.every",  # never
    "statistics.every",  # never
    "samples.temperature",  # greedy
    "health.every",
    "guards.spike_deviations",  # NaN and infinity only
    "guards.max_skips",
    "guards.max_rollbacks",
    "guards.replica_check_every",
}
MAY_BE_NEGATIVE = {"training.seed"}  # a name, not a number


@pytest.fixture(scope="module")
def quickstart() -> PretrainConfig:
    config: PretrainConfig = compose_program("pretrain", ["experiment=quickstart"])
    return config


def numbers_of(config: Any, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield the key and type of every setting that is a number."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from numbers_of(value, f"{prefix}{name}.")
        for kind in (int, float):
            if hint in (kind, kind | None):
                yield prefix + name, kind


def with_value(config: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    part = with_value(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: part})


def refusal(config: PretrainConfig, name: str, value: Any) -> str | None:
    """Return why a value is refused; None if it is accepted."""
    try:
        with_value(config, name, value)
    except ValueError as error:
        return str(error)
    return None


def accepted(config: PretrainConfig, value: float) -> set[str]:
    """Return the accepted numbers of a value; a refusal must name the key."""
    names = set()
    for name, kind in numbers_of(config):
        if kind is int and not math.isfinite(value):
            continue  # Hydra refuses it as no integer
        message = refusal(config, name, kind(value))
        if message is None:
            names.add(name)
        else:
            assert name.rpartition(".")[2] in message
    return names


def test_every_number_is_refused_below_zero(quickstart: PretrainConfig) -> None:
    assert len(list(numbers_of(quickstart))) > 60
    assert accepted(quickstart, -1) == MAY_BE_NEGATIVE


def test_every_number_is_refused_at_zero_unless_zero_has_a_meaning(
    quickstart: PretrainConfig,
) -> None:
    assert accepted(quickstart, 0) == MAY_BE_ZERO


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_number_is_refused_where_it_is_none(quickstart: PretrainConfig, value: float) -> None:
    assert accepted(quickstart, value) == set()


def test_a_number_that_is_none_is_found_in_a_mapping_and_named() -> None:
    mixture = {"cc": MixtureDataSetConfig(token_shards="a", weight=math.nan)}

    data = dataclasses.make_dataclass("Data", [("mixture", dict[str, MixtureDataSetConfig])])

    with pytest.raises(ValueError, match=r"^mixture\.cc\.weight=nan: must be a finite number$"):
        check(data(mixture))


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_a_moment_that_never_moves_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{name}=1.0: must be at least 0 and below 1"):
        OptimizerConfig(learning_rate=1e-3, warmup_steps=0, **{name: 1.0})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("training.step=3", "Key 'step' not in 'TrainingConfig'", id="mistyped key"),
        pytest.param("trainin.steps=3", "Key 'trainin' not in", id="mistyped group"),
        pytest.param("+optimizer.lr=1", "Key 'lr' not in 'OptimizerConfig'", id="added key"),
        pytest.param("training.steps=many", "full_key: training.steps", id="word for a number"),
        pytest.param("training.steps=1.5", "full_key: training.steps", id="fraction for a count"),
        pytest.param("training.steps=null", "full_key: training.steps", id="null for a count"),
        pytest.param("compile_blocks=maybe", "full_key: compile_blocks", id="word for yes or no"),
        pytest.param(
            "run_dir=[a,b]", "run_dir=[a,b]: one value belongs here", id="list for a word"
        ),
        pytest.param("optimizer={beta1:a}", "full_key: optimizer.beta1", id="wrong in a group"),
        pytest.param("model=nothing", "Could not find 'model/nothing'", id="unknown option"),
        pytest.param("training.steps", "training.steps", id="no value"),
        pytest.param("run_dir=", "run_dir", id="empty run folder"),
        pytest.param("model.num_heads=5", "model.num_heads=5 does not divide", id="heads"),
        pytest.param(
            "parallelism.tensor_parallel_size=3",
            "model.num_heads=4 is not divisible by parallelism.tensor_parallel_size=3",
            id="heads over tensor ranks",
        ),
        pytest.param(
            "parallelism.pipeline_parallel_size=5",
            "model.num_layers=4 is below parallelism.pipeline_parallel_size=5",
            id="layers over stages",
        ),
        pytest.param(
            "watch.step_timeout_seconds=900",
            "watch.step_timeout_seconds=900.0 is not below cluster.collective_timeout_seconds",
            id="a watch that comes too late",
        ),
        pytest.param(
            "data.token_shards='pipe:touch x'", "a location that begins with pipe:", id="a command"
        ),
    ],
)
def test_a_wrong_word_on_the_command_line_is_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match="refuses these settings") as caught:
        compose_program("pretrain", ["experiment=quickstart", override])

    # The message begins with the command, which would match; Hydra's message follows.
    said = caught.value.__cause__
    assert message in f"{said} {said.__cause__ if said else None}"


@pytest.mark.parametrize(
    ("layout", "world_size", "message"),
    [
        pytest.param(
            {"tensor_parallel_size": 2},
            3,
            "world size 3 is no multiple of parallelism.tensor_parallel_size=2",
            id="half a replica",
        ),
        pytest.param(
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            6,
            "x parallelism.pipeline_parallel_size=2 = 4: start a multiple of 4 processes",
            id="one and a half",
        ),
        pytest.param(
            {"micro_batch_size": 16, "global_batch_size": 40},
            2,
            "set parallelism.global_batch_size=32 or 64",
            id="global batch",
        ),
    ],
)
def test_a_layout_that_does_not_fit_the_ranks_is_named(
    quickstart: PretrainConfig, layout: dict[str, int], world_size: int, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(quickstart.parallelism, **layout).num_micro_batches(world_size)

    assert message in str(caught.value)


# Prints whether torch was loaded when the program ends.
_PROGRAM = """
import runpy, sys
try:
    runpy.run_path("launch/pretrain.py", run_name="__main__")
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("training.step=3", "Key 'step' not in 'TrainingConfig'", id="Hydra's check"),
        pytest.param("optimizer.learning_rate=-1", "must be above 0", id="a dataclass's check"),
        pytest.param(
            "parallelism.tensor_parallel_size=2", "world size 3 is no multiple", id="the ranks"
        ),
    ],
)
def test_the_program_ends_with_code_2_within_10_seconds_before_torch(
    tmp_path: Path, override: str, message: str
) -> None:
    # One rank of three without a rendezvous: looking for it would fail in another way.
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}
    output, errors = tmp_path / "output", tmp_path / "errors"
    with output.open("wb") as out, errors.open("wb") as err:
        program = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, "experiment=quickstart", override],
            cwd=ROOT,
            env={"PATH": "", **place},
            stdout=out,
            stderr=err,
        )
        _, status, usage = os.wait4(program.pid, 0)
    program.returncode = os.waitstatus_to_exitcode(status)

    assert message in errors.read_text()
    assert "Traceback" not in errors.read_text()
    assert program.returncode == 2
    assert output.read_text() == "False\n"
    assert usage.ru_utime + usage.ru_stime < 10  # of one core, independent of the machine's load
