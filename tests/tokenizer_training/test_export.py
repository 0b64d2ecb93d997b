"""The weights folder of a run follows its checkpoints; any checkpoint is exported."""

import json
from pathlib import Path

import pytest
import torch

from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.tokenizer_training.export import export_checkpoint
from ernie_vilg.tokenizer_training.saved_state import read_tokenizer
from ernie_vilg.vqgan.weights import load_image_tokenizer, read_card
from launch import export
from tests.tokenizer_training.tokenizer_run import (
    ALONE,
    HookedPhases,
    kill_at,
    run,
    tiny_config,
    write_shards,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainImageTokenizerConfig:
    write_shards(tmp_path / "shards")
    return tiny_config(tmp_path / "shards", tmp_path / "run", steps=6, ema_decay=0.5)


class WeightsSeen(HookedPhases):
    """Phases of a run, before each step of which another program loads the weights."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(at=Phase.DATA, step=0, act=lambda: None)
        self.run_dir = run_dir
        self.steps: list[int | None] = []

    def enter(self, phase: Phase, step: int) -> None:
        super().enter(phase, step)
        if phase is Phase.DATA:
            folder = self.run_dir / "weights"
            self.steps.append(read_card(folder).lineage["step"] if folder.exists() else None)
            if folder.exists():
                load_image_tokenizer(folder)


def test_weights_are_those_of_the_newest_checkpoint_while_the_run_goes_on(
    config: TrainImageTokenizerConfig,
) -> None:
    seen = WeightsSeen(Path(config.run_dir))

    run(ALONE, config, phases=seen)

    assert seen.steps == [None, None, 2, 2, 4, 4]  # before steps 1 to 6
    folder = RunFolder(Path(config.run_dir))
    exported, _ = load_image_tokenizer(folder.tokenizer_weights)
    saved = read_tokenizer(folder.checkpoint(6), config.image_tokenizer)
    for name, value in saved.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value), name


def test_a_start_brings_the_weights_level_where_a_kill_came_between(
    config: TrainImageTokenizerConfig,
) -> None:
    weights = Path(config.run_dir) / "weights"
    kill_at(config, "save: before pointer", 4)
    assert (Path(config.run_dir) / "checkpoints" / "step_00000004").is_dir()
    assert read_card(weights).lineage["step"] == 2
    seen = WeightsSeen(Path(config.run_dir))

    run(ALONE, config, phases=seen)

    assert seen.steps == [4, 4]


def test_any_checkpoint_is_exported_with_its_card(
    config: TrainImageTokenizerConfig, tmp_path: Path
) -> None:
    run(ALONE, config)
    run_dir = Path(config.run_dir)

    assert export_checkpoint(run_dir, tmp_path / "newest", overwrite=False) == 6
    assert export_checkpoint(run_dir, tmp_path / "earlier", overwrite=False, step=4) == 4

    newest, earlier = read_card(tmp_path / "newest"), read_card(tmp_path / "earlier")
    assert (newest.lineage["step"], earlier.lineage["step"]) == (6, 4)
    assert newest.lineage["run"] == "run"
    assert newest.figures["psnr"] == json.loads((run_dir / "metrics.json").read_text())["psnr"]
    assert earlier.figures == {}  # the evaluation was of step 6
    assert (
        load_image_tokenizer(tmp_path / "newest")[1] == load_image_tokenizer(run_dir / "weights")[1]
    )


def test_the_program_recognises_a_run_of_the_image_tokenizer(
    config: TrainImageTokenizerConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(ALONE, config)
    options = [f"run={config.run_dir}", f"output_dir={tmp_path / 'exported'}"]
    monkeypatch.setattr("sys.argv", ["launch/export.py", *options])

    export.main()

    assert capsys.readouterr().out == f"{tmp_path / 'exported'}: the weights of step 6\n"
    load_image_tokenizer(tmp_path / "exported")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        pytest.param(1, r"step=1: .* cannot be exported .*step_00000006, step_00000004", id="gone"),
        pytest.param(None, "already exists: set overwrite=true", id="the folder is there"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    config: TrainImageTokenizerConfig, tmp_path: Path, step: int | None, message: str
) -> None:
    run(ALONE, config)
    output_dir = tmp_path / "exported"
    if step is None:
        output_dir.mkdir()
        (output_dir / "mine").touch()

    with pytest.raises(InputError, match=message):
        export_checkpoint(Path(config.run_dir), output_dir, overwrite=False, step=step)
