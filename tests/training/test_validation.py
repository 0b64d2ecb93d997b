"""A run measures held-out pairs, keeps the best checkpoint, and ends when nothing improves."""

import json
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.checkpoint.export import best_step_of_run
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.validation import ValidationConfig
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.charts import read_metrics
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.validations import append_validation
from ernie_vilg.training.pretrain import pretrain
from launch.drills.data_set import DataSet, encode_pairs, make_data_set, write_pairs
from launch.pretrain import callbacks_of
from tests.distributed import run_distributed
from tests.training.runs import run_on, tiny_run

NUM_HELD_OUT = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("validated")
    data = make_data_set(folder)
    write_pairs(folder / "held_out", NUM_HELD_OUT)
    encode_pairs(data, folder / "held_out", folder / "held_out_tokens")
    return data


def validated(folder: Path, data: DataSet, *, steps: int, **settings: object) -> PretrainConfig:
    """Return a tiny run with validation."""
    held_out = data.token_shards.with_name("held_out_tokens")
    config = run_on(tiny_run(folder, steps=steps), data)
    return replace(
        config,
        validation=ValidationConfig(
            **{"every": 2, "shards": {"held_out": str(held_out)}, **settings}  # type: ignore[arg-type]
        ),
    )


def train(launch: Launch, config: PretrainConfig) -> ExitCode:
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    with ExitStack() as parts:
        return pretrain(config, launch, callbacks=callbacks_of(config, parts))


def steps_validated(config: PretrainConfig) -> list[int]:
    lines = RunFolder(Path(config.run_dir)).validations.read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def checkpoints(config: PretrainConfig) -> list[int]:
    folder = RunFolder(Path(config.run_dir)).checkpoints
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


@pytest.mark.distributed
def test_held_out_losses_are_tracked_by_row_and_position(tmp_path: Path, data: DataSet) -> None:
    config = validated(tmp_path, data, steps=5)
    config = replace(config, training=replace(config.training, ema_decay=0.5))

    run_distributed(train, 2, config)

    assert steps_validated(config) == [2, 4, 5]  # the last step too
    entries = {
        entry["step"]: entry for entry in read_metrics(RunFolder(Path(config.run_dir)).metrics)
    }
    of_last = entries[5]
    for name in ("validation/held_out", "validation/held_out/average"):
        assert 0 < of_last[f"{name}/loss_text_to_image"] < 10
        assert of_last[f"{name}/loss"] == pytest.approx(
            of_last[f"{name}/loss_text_to_image"] + of_last[f"{name}/loss_image_to_text"]
        )
        rows = of_last[f"{name}/loss_by_image_row"]
        assert len(rows) == config.model.image_grid_size
        assert sum(rows) / len(rows) == pytest.approx(of_last[f"{name}/loss_text_to_image"])
        assert len(of_last[f"{name}/loss_by_text_position"]) == config.model.text_length
    assert of_last["validation/held_out/loss"] != of_last["validation/held_out/average/loss"]
    assert "validation/held_out/loss" not in entries[3]


@pytest.mark.distributed
def test_a_run_with_patience_ends_and_keeps_its_best(tmp_path: Path, data: DataSet) -> None:
    config = validated(tmp_path, data, steps=40, best="held_out/loss", patience=2)
    diverging = replace(config.optimizer, learning_rate=3.0, gradient_clipping=0.0)
    config = replace(
        config,
        optimizer=diverging,
        checkpoint=replace(config.checkpoint, keep=1),
        guards=replace(config.guards, spike_deviations=0.0),
    )

    (code,) = run_distributed(train, 1, config)

    done = steps_validated(config)
    best = best_step_of_run(Path(config.run_dir))
    assert code == ExitCode.DONE
    assert done[-1] < 40
    assert done[-1] == best + 4  # two validations later
    assert checkpoints(config) == [best, done[-1]]

    (again,) = run_distributed(train, 1, config)  # it is complete, and does nothing
    assert again == ExitCode.DONE
    assert steps_validated(config) == done

    patient = replace(config, validation=replace(config.validation, patience=3))
    run_distributed(train, 1, patient)
    assert steps_validated(config) == [*done, done[-1] + 2]


def test_the_best_is_that_of_the_run_s_own_figure(tmp_path: Path, data: DataSet) -> None:
    config = validated(tmp_path, data, steps=4)
    run_distributed(train, 1, config)

    with pytest.raises(InputError, match=r"validation\.best is None: resume the run with a figure"):
        best_step_of_run(Path(config.run_dir))

    named = replace(config, validation=replace(config.validation, best="held_out/loss"))
    run_distributed(train, 1, named)
    path = RunFolder(Path(config.run_dir)).validations
    append_validation(path, 2, {"held_out/loss": 0.1})  # a step is validated again: the last counts
    append_validation(path, 3, {"held_out/loss": 0.0})  # a step without a checkpoint
    append_validation(path, 4, {"held_out/loss": float("nan")})
    assert best_step_of_run(Path(config.run_dir)) == 2


def test_damaged_held_out_pairs_stop_a_run_before_its_first_step(
    tmp_path: Path, data: DataSet
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in data.token_shards.with_name("held_out_tokens").iterdir():
        content = path.read_bytes()
        if path.suffix == ".tar":
            content = content.replace(b"\x93NUMPY", b"\x93NUMPI", 1)
        (broken / path.name).write_bytes(content)
    config = validated(tmp_path, data, steps=4, shards={"held_out": str(broken)})
    loader = replace(config.data.loader, damage="skip")  # training pairs alone may be replaced

    with pytest.raises(Exception, match=re.escape(str(broken))):
        run_distributed(train, 1, replace(config, data=replace(config.data, loader=loader)))

    assert not RunFolder(Path(config.run_dir)).metrics.exists() or not read_metrics(
        RunFolder(Path(config.run_dir)).metrics
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": {}}, "needs held-out pairs"),
        ({"shards": {"a/b": "x"}}, "letters, digits"),
        ({"best": "held_out/accuracy"}, "choose held_out/loss,"),
        ({"best": "other/loss"}, "choose held_out/loss,"),
        ({"best": "held_out/loss", "every": 0}, "nothing is validated"),
        ({"patience": 3}, "needs validation.best"),
        ({"best": "held_out/average/loss"}, "training.ema_decay=0"),
        ({"best": "held_out/loss", "every": 3}, "one interval must be a multiple"),
        ({"shards": {"far": "s3://bucket/held_out"}}, "data.loader.cache_dir is null"),
    ],
)
def test_settings_that_contradict_each_other(
    tmp_path: Path, data: DataSet, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        validated(tmp_path, data, steps=4, **settings)
