"""A run resumes under the settings of its last start, or under allowed changes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.data import MixtureChangeConfig
from ernie_vilg.config.model import ReconstructorConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import Freedom, freedom_of
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.settings_drift import (
    check_drift,
    record_changes,
    setting_names,
    settings_drift,
)
from tests.runs.test_recorded_settings import mixed_run
from tests.training.runs import tiny_run


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """Return settings with some of them changed, by key."""
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        part = changed(getattr(config, first), {rest: value}) if rest else value
        config = replace(config, **{first: part})
    return config


def started_run(folder: Path) -> PretrainConfig:
    config = tiny_run(folder, steps=4)
    write_run(config)
    return config


def drift(config: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    changes = settings_drift(Path(config.run_dir), config)
    return {change.name: (change.old, change.new) for change in changes}


def test_a_fresh_run_has_no_earlier_settings(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=4)

    assert check_drift(Path(config.run_dir), config) == []


def test_the_same_settings_of_every_form_are_no_change(tmp_path: Path) -> None:
    config = mixed_run(tmp_path)
    write_run(config)

    assert check_drift(Path(config.run_dir), config) == []


def test_the_same_folder_by_another_path_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {f"data.{kind}_tokenizer": str(tmp_path / kind) for kind in ("text", "image")}
    config = changed(tiny_run(tmp_path, steps=4), places)
    write_run(config)
    monkeypatch.chdir(tmp_path)

    assert drift(changed(config, {"data.token_shards": "shards"})) == {}


def test_a_changed_learning_rate_is_refused_with_old_and_new_and_the_way_to_allow_it(
    tmp_path: Path,
) -> None:
    config = changed(started_run(tmp_path), {"optimizer.learning_rate": 0.02})

    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.01 -> 0\.02") as caught:
        check_drift(Path(config.run_dir), config)

    assert "'allow_changes=[optimizer.learning_rate]'" in str(caught.value)


@pytest.mark.parametrize("allowed", ["optimizer.beta2", "optimizer"], ids=["by name", "by group"])
def test_an_allowed_change_is_accepted(tmp_path: Path, allowed: str) -> None:
    config = changed(started_run(tmp_path), {"optimizer.beta2": 0.99, "allow_changes": (allowed,)})

    (change,) = check_drift(Path(config.run_dir), config)

    assert str(change) == "optimizer.beta2: 0.95 -> 0.99"


def test_an_accepted_change_needs_no_leave_at_the_next_start(tmp_path: Path) -> None:
    config = changed(started_run(tmp_path), {"optimizer.beta2": 0.99})
    write_run(config)  # as a start under allow_changes does

    assert check_drift(Path(config.run_dir), config) == []
    again = replace(config, allow_changes=("optimizer.beta2",))
    assert check_drift(Path(config.run_dir), again) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parallelism.global_batch_size", 16),
        ("model.text_length", 4),
        ("model.dropout", 0.1),
        ("data.seed", 1),
        ("data.shuffle_block_shards", 3),
        ("training.seed", 1),
    ],
)
def test_what_the_run_is_never_changes(tmp_path: Path, name: str, value: Any) -> None:
    config = changed(started_run(tmp_path), {name: value})

    with pytest.raises(ValueError, match=rf"{name}: .* \(never changes within a run\)") as caught:
        check_drift(Path(config.run_dir), config)
    assert "allow_changes" not in str(caught.value)
    with pytest.raises(ValueError, match=f"allow_changes names {name}, which never changes"):
        check_drift(Path(config.run_dir), replace(config, allow_changes=(name,)))


def test_every_change_is_listed_and_only_the_refused_ones_are_marked(tmp_path: Path) -> None:
    config = changed(
        started_run(tmp_path),
        {
            "optimizer.beta1": 0.8,
            "optimizer.learning_rate": 0.02,
            "guards.spike_deviations": 5.0,
            "training.log_every": 7,
            "allow_changes": ("guards",),
        },
    )

    with pytest.raises(ValueError, match="other settings") as caught:
        check_drift(Path(config.run_dir), config)

    _, *listed, ways = str(caught.value).splitlines()
    assert sorted(line.strip() for line in listed) == [
        "guards.spike_deviations: 10.0 -> 5.0",
        "optimizer.beta1: 0.9 -> 0.8 (not allowed)",
        "optimizer.learning_rate: 0.01 -> 0.02 (not allowed)",
        "training.log_every: 1 -> 7",
    ]
    assert "allow_changes=[guards,optimizer.learning_rate,optimizer.beta1]" in ways


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.steps", 8),
        ("parallelism.zero_stage", 2),
        ("parallelism.micro_batch_size", 1),
        ("data.loader.num_workers", 3),
        ("data.token_shards", "elsewhere"),
        ("data.mixture_changes", ()),
        ("checkpoint.keep", 5),
        ("guards.replica_check_every", 7),
        ("samples.every", 0),
        ("watch.step_timeout_seconds", 100.0),
    ],
)
def test_speed_layout_and_logging_change_freely(tmp_path: Path, name: str, value: Any) -> None:
    config = changed(started_run(tmp_path), {name: value})

    changes = check_drift(Path(config.run_dir), config)

    assert {change.freedom for change in changes} <= {Freedom.FREE}


def test_a_mixture_may_change_from_a_later_step_on(tmp_path: Path) -> None:
    config = mixed_run(tmp_path)
    write_run(config)
    later = MixtureChangeConfig(step=30, weights={"a": 0.9, "b": 0.1})
    changes = (*config.data.mixture_changes, later)

    found = drift(changed(config, {"data.mixture_changes": changes}))

    assert list(found) == ["data.mixture_changes"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("optimizer.learning_rat", "did you mean optimizer.learning_rate?"),
        ("learning_rate", "which is no setting"),
        ("optimizer.learning_rate.x", "which is no setting"),
        ("", "which is no setting"),
    ],
)
def test_an_unknown_name_in_allow_changes_is_refused_even_by_a_fresh_run(
    tmp_path: Path, entry: str, message: str
) -> None:
    config = replace(tiny_run(tmp_path, steps=4), allow_changes=(entry,))

    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        check_drift(Path(config.run_dir), config)


def test_a_decoder_that_is_taken_from_the_image_tokenizer_is_no_change(tmp_path: Path) -> None:
    config = mixed_run(tmp_path)  # recorded after the decoder was filled in
    write_run(config)
    asked = changed(config, {"model.reconstructor": ReconstructorConfig(kind="end_to_end")})

    assert check_drift(Path(config.run_dir), asked) == []


def test_secrets_in_a_location_are_in_no_list_of_changes(tmp_path: Path) -> None:
    config = mixed_run(tmp_path)
    write_run(config)
    mixture = {
        **config.data.mixture,
        "b": replace(
            config.data.mixture["b"], token_shards="https://user:canary@host/b?key=canary"
        ),
    }

    found = drift(changed(config, {"data.mixture": mixture}))

    assert found == {"data.mixture.b.token_shards": ("s3://bucket/b", "https://host/b")}


def test_accepted_changes_are_written_down_with_the_step(tmp_path: Path) -> None:
    config = changed(
        started_run(tmp_path), {"optimizer.beta2": 0.99, "allow_changes": ("optimizer",)}
    )
    run_dir = Path(config.run_dir)

    record_changes(run_dir, config, check_drift(run_dir, config), 120)
    record_changes(run_dir, config, [], 130)

    (line,) = RunFolder(run_dir).changes.read_text().splitlines()
    assert json.loads(line) == {
        "step": 120,
        "name": "optimizer.beta2",
        "old": 0.95,
        "new": 0.99,
        "freedom": "guarded",
    }


def by_freedom(names: list[str]) -> dict[Freedom, set[str]]:
    """Group settings by freedom; a section of which all have the same is one entry."""
    freedoms = {name: freedom_of(PretrainConfig, name) for name in names}
    found: dict[Freedom, set[str]] = {}
    for name, freedom in freedoms.items():
        section = name.rpartition(".")[0]
        others = {freedoms[other] for other in names if other.rpartition(".")[0] == section}
        entry = f"{section}.*" if section and others == {freedom} else name
        found.setdefault(freedom, set()).add(entry)
    return found


def test_which_settings_may_change(tmp_path: Path) -> None:
    found = by_freedom(setting_names(tiny_run(tmp_path, steps=4)))

    assert found == {
        Freedom.FREE: {
            "checkpoint.*",
            "cluster.*",
            "compile_blocks",
            "data.expected_pairs",
            "data.image_tokenizer",
            "data.loader.*",
            "data.max_truncated_fraction",
            "data.mixture",
            "data.mixture_changes",
            "data.text_tokenizer",
            "data.token_shards",
            "data.weigh_by",
            "gpu",
            "guards.replica_check_every",
            "health.*",
            "parallelism.activation_checkpointing",
            "parallelism.batch_size_warmup",
            "parallelism.micro_batch_size",
            "parallelism.offload_optimizer",
            "parallelism.pipeline_parallel_size",
            "parallelism.sequence_parallel",
            "parallelism.tensor_parallel_size",
            "parallelism.zero_stage",
            "precision",
            "run_dir",
            "profile.*",
            "samples.*",
            "statistics.*",
            "stopping.*",
            "tracking.*",
            "training.log_every",
            "training.steps",
            "validation.*",
            "watch.*",
        },
        Freedom.GUARDED: {
            "guards.max_rollbacks",
            "guards.max_skips",
            "guards.spike_deviations",
            "guards.spike_window",
            "linear_precision",
            "objective.*",
            "optimizer.*",
            "training.ema_decay",
        },
        Freedom.FIXED: {
            "data.seed",
            "data.shuffle_block_shards",
            "initialize_from",
            "model.*",
            "model.lora.*",
            "model.reconstructor.*",
            "parallelism.global_batch_size",
            "training.frozen",
            "training.seed",
        },
    }


@pytest.mark.parametrize(
    ("name", "freedom"),
    [
        ("training.new_setting", Freedom.GUARDED),
        ("new_setting", Freedom.GUARDED),
        ("checkpoint.new_setting", Freedom.FREE),
        ("data.mixture.a.weight", Freedom.FREE),
        ("cluster.slurm.nodes", Freedom.FREE),
        ("model.reconstructor.decoder.base_channels", Freedom.FIXED),
        ("guards", Freedom.GUARDED),
        ("model", Freedom.FIXED),
        ("dry_run", Freedom.UNCOMPARED),
    ],
)
def test_the_innermost_mark_of_a_setting_holds(name: str, freedom: Freedom) -> None:
    assert freedom_of(PretrainConfig, name) is freedom


def test_more_steps_say_the_learning_rate_that_they_come_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peak = {"learning_rate": 1.0, "warmup_steps": 0, "final_learning_rate_fraction": 0.1}
    config = changed(
        tiny_run(tmp_path, steps=9), {f"optimizer.{name}": value for name, value in peak.items()}
    )
    write_run(config)
    run_dir, longer = Path(config.run_dir), changed(config, {"training.steps": 17})

    record_changes(run_dir, longer, check_drift(run_dir, longer), 8)

    # Step 9 ended the decay at 0.1; now it is half-way, at 0.1 + 0.9 / 2.
    assert "learning rate of step 9: 0.1 -> 0.55" in caplog.text


def test_a_change_that_moves_no_learning_rate_says_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = changed(started_run(tmp_path), {"training.log_every": 7})

    record_changes(Path(config.run_dir), config, check_drift(Path(config.run_dir), config), 2)

    assert "learning rate" not in caplog.text
