"""A run traces the steps that its settings name, and no others."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.profile import ProfileConfig
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder
from tests.tokenizer_training.tokenizer_run import (
    ALONE,
    HookedPhases,
    run,
    tiny_config,
    write_shards,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainImageTokenizerConfig:
    write_shards(tmp_path / "shards")
    return tiny_config(tmp_path / "shards", tmp_path / "run", steps=5)


def traces(config: TrainImageTokenizerConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the events of each trace in the run folder."""
    return {
        path.name: json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        for path in sorted(Path(config.run_dir, "profiles").glob("*"))
    }


def steps_in(events: list[dict[str, Any]]) -> list[str]:
    steps = [event for event in events if event["name"].startswith("ProfilerStep#")]
    return [event["name"] for event in sorted(steps, key=lambda event: event["ts"])]


def test_the_trace_holds_the_chosen_steps_and_their_operations(
    config: TrainImageTokenizerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    assert run(ALONE, replace(config, profile=ProfileConfig(steps=(2, 4)))) == 0

    ((name, events),) = traces(config).items()
    assert name == "step_00000002-00000004-rank_00000.json.gz"
    assert steps_in(events) == ["ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"]
    assert any(event["name"] in ("aten::mm", "aten::addmm", "aten::bmm") for event in events)
    assert f"profiles/{name}" in caplog.text


def stop() -> None:
    raise InterruptedError


def test_a_run_that_fails_within_leaves_the_steps_so_far_and_a_resumed_one_traces_its_own(
    config: TrainImageTokenizerConfig,
) -> None:
    config = replace(config, profile=ProfileConfig(steps=(2, 4)))
    with pytest.raises(InterruptedError):
        run(ALONE, config, phases=HookedPhases(at=Phase.SAVE, step=2, act=stop))
    assert [steps_in(events) for events in traces(config).values()] == [["ProfilerStep#2"]]

    assert run(ALONE, config) == 0  # from the checkpoint of step 0

    names = list(traces(config))
    assert names == [
        "step_00000002-00000002-rank_00000.json.gz",
        "step_00000002-00000004-rank_00000.json.gz",
    ]


def test_a_run_that_resumes_after_the_steps_and_another_rank_write_none(
    config: TrainImageTokenizerConfig,
) -> None:
    longer = replace(config, training=replace(config.training, steps=6))
    run(ALONE, replace(config, profile=ProfileConfig(steps=(1, 2), ranks=(1,))))
    run(ALONE, replace(longer, profile=ProfileConfig(steps=(1, 2))))

    assert traces(config) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"steps": (5,)}, "first and the last step", id="one step"),
        pytest.param({"steps": (5, 4)}, "must not be below", id="the wrong way round"),
        pytest.param({"steps": (1, 101)}, "at most 100", id="too many"),
        pytest.param({"steps": (0, 3)}, "at least 1", id="step 0"),
        pytest.param({"steps": (1, 3), "ranks": ()}, "at least one rank", id="no rank"),
        pytest.param({"steps": (1, 3), "ranks": (1, 1)}, "none twice", id="a rank twice"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProfileConfig(**settings)


def test_steps_and_ranks_that_a_run_does_not_have_are_refused() -> None:
    config = ProfileConfig(steps=(8, 10), ranks=(0, 3))
    config.check_run(steps=10, world_size=4)

    with pytest.raises(InputError, match=r"training\.steps=9: the run ends before"):
        config.check_run(steps=9, world_size=4)
    with pytest.raises(InputError, match=r"on 3 rank\(s\).*2 is the last"):
        config.check_run(steps=10, world_size=3)


@pytest.mark.gpu
def test_on_a_gpu_there_are_kernels_and_a_snapshot_of_the_memory(
    config: TrainImageTokenizerConfig,
) -> None:
    assert run(ALONE, replace(config, profile=ProfileConfig(steps=(2, 3)))) == 0

    folder = RunFolder(Path(config.run_dir))
    events = json.loads(gzip.decompress(folder.profile(2, 3, 0).read_bytes()))["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
    assert folder.profile_of_memory(2, 3, 0).stat().st_size > 0
    line = json.loads(folder.metrics.read_text().splitlines()[0])
    assert line["reserved_memory_bytes"] >= line["memory_bytes"] > 0
    assert line["host_memory_bytes"] > 0
