"""A decay that branches off a checkpoint equals a run that was to decay there from its start."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.optimizer import OptimizerConfig, ParameterGroupConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.state.consolidate import MOMENTS, WEIGHTS, gather_weights
from ernie_vilg.preparation.dry_run import dry_run
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.settings_drift import check_drift
from ernie_vilg.training import pretrain as training_run
from launch.drills.data_set import DataSet, make_data_set
from tests.distributed import run_distributed
from tests.training.runs import pretrain_here, run_on, tiny_run

PEAK = 1e-2
GROUPS = (ParameterGroupConfig(pattern="*.bias", learning_rate_factor=0.5, weight_decay=0.1),)
TRUNK = OptimizerConfig(learning_rate=PEAK, warmup_steps=2, schedule="constant", groups=GROUPS)
BRANCH = replace(TRUNK, schedule="wsd", decay_steps=3, decay_shape="linear")
RATES = [PEAK * (0.1 + 0.9 * left / 3) for left in (2, 1, 0)]
"""Learning rates of the decay's steps, 5 to 7."""


def run_of(
    folder: Path, data: DataSet, optimizer: OptimizerConfig, *, steps: int
) -> PretrainConfig:
    config = run_on(tiny_run(folder, steps=steps, save_every=4), data)
    return replace(config, optimizer=optimizer)


def metrics_of(config: PretrainConfig) -> dict[int, tuple[float, float, float]]:
    """Return learning rate, loss and gradient norm of each step."""
    lines = RunFolder(Path(config.run_dir)).metrics.read_text(encoding="utf-8").splitlines()
    return {
        line["step"]: (line["learning_rate"], line["loss"], line["gradient_norm"])
        for line in map(json.loads, lines)
    }


def fork(source: PretrainConfig, target: PretrainConfig) -> None:
    """Copy the checkpoint of step 4 into a new run folder, as docs/model.md says."""
    old, new = (RunFolder(Path(config.run_dir)) for config in (source, target))
    shutil.copytree(old.checkpoint(4), new.checkpoint(4))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"))


@pytest.mark.distributed
def test_a_decay_from_a_checkpoint_equals_one_that_was_planned(
    tmp_path: Path, data: DataSet
) -> None:
    trunk = run_of(tmp_path / "trunk", data, TRUNK, steps=5)
    planned = run_of(tmp_path / "planned", data, BRANCH, steps=7)
    branch = run_of(tmp_path / "branch", data, BRANCH, steps=7)
    regrouped = run_of(tmp_path / "regrouped", data, replace(BRANCH, groups=()), steps=7)
    for config in (trunk, planned):
        run_distributed(pretrain_here, 1, config)
    for config in (branch, regrouped):
        fork(trunk, config)
        run_distributed(pretrain_here, 1, config)

    before, expected, after = (metrics_of(config) for config in (trunk, planned, branch))
    assert [rate for rate, _, _ in before.values()] == [PEAK / 2, *[PEAK] * 4]
    assert [after[step][0] for step in (5, 6, 7)] == pytest.approx(RATES)
    assert after == {step: expected[step] for step in (5, 6, 7)}
    for state in (WEIGHTS, *MOMENTS):
        whole, branched = (
            gather_weights(RunFolder(Path(config.run_dir)).checkpoint(7) / "deepspeed", state)
            for config in (planned, branch)
        )
        assert whole.keys() == branched.keys()
        assert all(value.equal(branched[name]) for name, value in whole.items())
    # Other groups are another layout of the same state.
    after_regrouping = metrics_of(regrouped)
    assert after_regrouping[5][1] == pytest.approx(before[5][1], rel=1e-6)
    assert after_regrouping[7][1] != pytest.approx(after[7][1], rel=1e-6)


def test_the_same_run_may_begin_its_decay_if_that_is_allowed(tmp_path: Path) -> None:
    long = replace(
        tiny_run(tmp_path, steps=90),
        optimizer=replace(TRUNK, schedule="wsd", decay_steps=9),
    )
    write_run(long)
    cut = replace(
        long,
        optimizer=replace(long.optimizer, decay_steps=3),
        training=replace(long.training, steps=7),
    )

    with pytest.raises(InputError, match=r"allow_changes=\[optimizer\.decay_steps\]"):
        check_drift(Path(cut.run_dir), cut)
    changes = check_drift(Path(cut.run_dir), replace(cut, allow_changes=("optimizer.decay_steps",)))

    assert {change.name for change in changes} == {"optimizer.decay_steps", "training.steps"}


def test_a_pattern_that_matches_nothing_ends_the_start_before_ranks_meet(
    tmp_path: Path, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meet(*arguments: object) -> None:
        raise AssertionError("the ranks meet")

    monkeypatch.setattr(training_run, "_connect", meet)
    groups = (ParameterGroupConfig(pattern="*.biases"),)
    config = run_of(tmp_path, data, replace(TRUNK, groups=groups), steps=2)

    with pytest.raises(InputError, match=r"pattern=\*\.biases matches no parameter"):
        pretrain_here(Launch(rank=0, world_size=1, local_rank=0), config)
    with pytest.raises(InputError, match=r"pattern=\*\.biases matches no parameter"):
        dry_run(config, 1)


def test_a_dry_run_says_how_many_parameters_each_group_has(tmp_path: Path, data: DataSet) -> None:
    page = dry_run(run_of(tmp_path, data, TRUNK, steps=2), 1)

    assert re.search(
        r"^optimizer .* with weight decay 0.01; .* of \*\.bias with learning rate x 0.5, weight "
        r"decay 0.1$",
        page,
        re.MULTILINE,
    )
