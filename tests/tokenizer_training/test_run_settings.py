"""A run goes on with the settings of its last start, but for changes that are allowed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.optimizer import ParameterGroupConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.runs.recorded_settings import program_of, read_settings
from tests.tokenizer_training.tokenizer_run import (
    ALONE,
    metrics_of,
    run,
    tiny_config,
    write_shards,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainImageTokenizerConfig:
    """Return a run that has made two steps."""
    write_shards(tmp_path / "shards")
    config = tiny_config(tmp_path / "shards", tmp_path / "run", steps=2)
    run(ALONE, config)
    return config


def changed(config: TrainImageTokenizerConfig, section: str, **values: Any) -> Any:
    return replace(config, **{section: replace(getattr(config, section), **values)})


def test_settings_that_decide_what_the_run_is_never_change(
    config: TrainImageTokenizerConfig,
) -> None:
    other = changed(config, "training", seed=1, horizontal_flip=True)

    with pytest.raises(InputError) as raised:
        run(ALONE, other)

    message = str(raised.value)
    assert "training.seed: 0 -> 1 (never changes within a run)" in message
    assert "training.horizontal_flip: false -> true (never changes within a run)" in message


def test_a_change_of_the_objective_must_be_allowed_and_is_recorded(
    config: TrainImageTokenizerConfig,
) -> None:
    other = changed(config, "objective", absolute_error_weight=2.0)
    with pytest.raises(InputError, match=r"add 'allow_changes=\[objective.absolute_error_weight\]"):
        run(ALONE, other)

    run(ALONE, replace(other, allow_changes=("objective",)))

    (line,) = (Path(config.run_dir) / "changes.jsonl").read_text().splitlines()
    change = json.loads(line)
    assert (change["name"], change["old"], change["new"], change["step"]) == (
        "objective.absolute_error_weight", 1.0, 2.0, 2,
    )  # fmt: skip


def test_a_finished_run_goes_on_with_more_steps_and_moved_shards(
    config: TrainImageTokenizerConfig, tmp_path: Path
) -> None:
    (tmp_path / "shards").rename(tmp_path / "moved")
    longer = changed(config, "training", steps=3, log_every=2)
    longer = replace(longer, shards=str(tmp_path / "moved"))

    assert run(ALONE, longer) == 0

    run_dir = Path(config.run_dir)
    assert [line["step"] for line in metrics_of(run_dir)] == [1, 2, 3]
    assert json.loads((run_dir / "metrics.json").read_text())["step"] == 3
    assert read_settings(run_dir, TrainImageTokenizerConfig).training.steps == 3


def test_other_shards_of_the_same_name_are_refused(
    config: TrainImageTokenizerConfig, tmp_path: Path
) -> None:
    (tmp_path / "shards").rename(tmp_path / "earlier")
    write_shards(tmp_path / "shards", num_damaged=1)

    with pytest.raises(InputError, match=r"was written by a run with other settings .*order: "):
        run(ALONE, config)


def test_the_record_says_which_program_trains(config: TrainImageTokenizerConfig) -> None:
    run_dir = Path(config.run_dir)

    assert program_of(run_dir) == "train_image_tokenizer"
    with pytest.raises(InputError, match=r"is a run of launch/train_image_tokenizer\.py where one"):
        read_settings(run_dir, PretrainConfig)


def test_groups_of_parameters_are_the_transformers_alone(
    config: TrainImageTokenizerConfig,
) -> None:
    groups = (ParameterGroupConfig(pattern="*"),)

    with pytest.raises(InputError, match=r"optimizer\.groups with 1 entries: only the transformer"):
        replace(config, optimizer=replace(config.optimizer, groups=groups))
