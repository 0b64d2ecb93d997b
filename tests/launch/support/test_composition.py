"""The settings of a command line, composed without running it."""

import pytest
from hydra.core.config_store import ConfigStore

from launch.support.composition import compose_program, program_of, settings_of


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param(
            "python launch/export.py run=r", ("export", ["run=r"]), id="a program by itself"
        ),
        pytest.param(
            "deepspeed --num_gpus 2 launch/pretrain.py experiment=quickstart",
            ("pretrain", ["experiment=quickstart"]),
            id="behind a launcher with settings of its own",
        ),
        pytest.param("/a/python /b/launch/x.py", ("x", []), id="absolute paths"),
        pytest.param("cp -r a b", None, id="not ours"),
        pytest.param("python benchmarks/x.py", None, id="another folder"),
    ],
)
def test_program_is_found(command: str, expected: tuple[str, list[str]] | None) -> None:
    assert program_of(command.split()) == expected


def test_settings_hold_defaults_and_overrides() -> None:
    settings = settings_of(
        ["python", "launch/evaluate.py", "weights=w", "pairs=p", "output_dir=o", "count=7"]
    )

    assert settings is not None
    assert settings["count"] == 7
    assert settings["judge"] == "shapes"


def test_command_that_is_not_ours_has_no_settings() -> None:
    assert settings_of(["cp", "a", "b"]) is None


def test_refusal_names_program_words_and_reason() -> None:
    words = ["weights=w", "pairs=p", "output_dir=o", "count=0"]
    with pytest.raises(ValueError, match=r"launch/evaluate\.py .*count=0: it refuses .*at least 1"):
        compose_program("evaluate", words)


def test_unknown_key_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="weigths"):
        compose_program("evaluate", ["weigths=w", "pairs=p", "output_dir=o"])


def test_no_schema_stays_in_hydras_store() -> None:
    """Hydra copies its store whenever it composes, so what stays would slow the next ones down."""
    before = set(ConfigStore.instance().repo)
    compose_program("plan", ["experiment=quickstart", "num_gpus=8", "gpu=h100-80gb"])
    with pytest.raises(ValueError, match="nothing"):
        compose_program("draw_shapes", ["output_dir=o", "nothing=1"])

    assert set(ConfigStore.instance().repo) == before
    assert not [name for name in before if name.endswith("_schema.yaml")]
