"""An export holds the weights of the last step, or their average, as requested."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ernie_vilg import __version__
from ernie_vilg.checkpoint.export import export
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.weights import CONFIG_NAME, WEIGHTS_NAME
from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG
from ernie_vilg.parallel.state.consolidate import gather_weights
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.json_files import read_json
from launch.drills.data_set import DataSet, make_data_set
from tests.distributed import run_distributed
from tests.training.runs import pretrain_here, run_on, tiny_run


def train(launch: Launch, config: PretrainConfig) -> None:
    pretrain_here(launch, config)


def finished_run(data: DataSet, folder: Path) -> Path:
    """Train two steps; return the run's folder."""
    config = run_on(tiny_run(folder, steps=2, save_every=1), data)
    config = replace(config, training=replace(config.training, ema_decay=0.9))
    run_distributed(train, 1, config)
    return Path(config.run_dir)


@pytest.mark.distributed
def test_the_folder_holds_the_average_if_asked_and_says_so(tmp_path: Path) -> None:
    run_dir = finished_run(make_data_set(tmp_path / "data"), tmp_path)
    first, last = (
        gather_weights(RunFolder(run_dir).checkpoint(step) / CHECKPOINT_TAG) for step in (1, 2)
    )

    before = os.umask(0o022)
    for average in (False, True):
        export(run_dir, tmp_path / str(average), overwrite=False, average=average)
    os.umask(before)

    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("True/**/*")} == {0o755, 0o644}
    # The decay of step 2 is 3/12.
    for average, share_of_first in ((False, 0.0), (True, 0.25)):
        config = read_json(tmp_path / str(average) / CONFIG_NAME)
        assert (config["average"], config["ernie_vilg_version"]) == (average, __version__)
        weights = load_file(tmp_path / str(average) / WEIGHTS_NAME)
        for name, value in last.items():
            expected = first[name].lerp(value, 1 - share_of_first).view(weights[name].shape)
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-7)


@pytest.mark.distributed
def test_a_link_stays_and_a_folder_of_something_else_is_not_deleted(tmp_path: Path) -> None:
    run_dir = finished_run(make_data_set(tmp_path / "data"), tmp_path)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to("scratch/weights")

    for overwrite in (False, True):
        export(run_dir, link, overwrite=overwrite, average=False)
    with pytest.raises(InputError, match="did not write it and will not delete it"):
        export(run_dir, tmp_path / "thesis", overwrite=True, average=False)
    with pytest.raises(InputError, match=r"run=.* lies within output_dir="):
        export(run_dir, tmp_path, overwrite=True, average=False)

    assert link.is_symlink()
    assert (tmp_path / "scratch/weights" / CONFIG_NAME).is_file()
    assert (tmp_path / "thesis/thesis.tex").is_file()
