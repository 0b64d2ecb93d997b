"""Refused settings of tracking."""

import math

import pytest

from ernie_vilg.config.tracking import TrackingConfig
from launch.support.composition import compose_program


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="wandb_mode=of: choose auto, online, offline or disabled"):
        TrackingConfig(wandb_mode="of")


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_the_end_is_bounded(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"tracking\.finish_seconds"):
        TrackingConfig(finish_seconds=seconds)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        pytest.param({}, "pretrain", id="no experiment: the folder"),
        pytest.param({"experiment": "quickstart"}, "quickstart-pretrain", id="both"),
        pytest.param({"experiment": "pretrain"}, "pretrain", id="the same word once"),
        pytest.param({"experiment": "quickstart", "name": "mine"}, "mine", id="a name"),
    ],
)
def test_a_run_is_named_after_its_experiment_and_folder(
    settings: dict[str, str], name: str
) -> None:
    assert TrackingConfig(**settings).name_of("outputs/quickstart/pretrain") == name


@pytest.mark.parametrize(
    "settings", [{"name": ""}, {"group": " a"}, {"tags": ("a" * 65,)}, {"tags": ("",)}]
)
def test_labels_that_wandb_refuses_are_refused_first(settings: dict[str, str]) -> None:
    (key,) = settings
    with pytest.raises(ValueError, match=rf"tracking\.{key}"):
        TrackingConfig(**settings)


@pytest.mark.parametrize(
    ("program", "options", "expected"),
    [
        pytest.param("pretrain", ["experiment=quickstart"], ("quickstart", "pretrain"), id="file"),
        pytest.param(
            "pretrain",
            ["experiment=quickstart", "tracking.experiment=a", "tracking.job_type=ablation"],
            ("a", "ablation"),
            id="set by hand",
        ),
        pytest.param(
            "train_image_tokenizer",
            ["image_tokenizer=scenes", "shards=s", "run_dir=r"],
            ("scenes", "image_tokenizer"),
            id="the image tokenizer's file",
        ),
    ],
)
def test_the_experiment_is_the_file_that_the_command_line_chooses(
    program: str, options: list[str], expected: tuple[str, str]
) -> None:
    tracking = compose_program(program, options).tracking

    assert (tracking.experiment, tracking.job_type) == expected
