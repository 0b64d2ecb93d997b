"""A resharded state is the same state, bit for bit."""

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_vilg.checkpoint import reshard
from ernie_vilg.checkpoint.consolidated import find_consolidated
from ernie_vilg.checkpoint.folder import read_checkpoint_manifest
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import original_name
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.state.load_whole import find_differences, load_whole_state
from ernie_vilg.parallel.state.whole_state import WholeState
from ernie_vilg.runs.run_folder import RunFolder
from launch.drills.data_set import DataSet, make_data_set
from tests.distributed import run_distributed
from tests.parallel.resharding import (
    STEPS_TAKEN,
    WHOLE,
    Hop,
    Seen,
    differing,
    load,
    start_hop,
    take_hop,
    take_hops,
)
from tests.training.runs import pretrain_here, run_on, tiny_run

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
"""Relative tolerance of the next step's loss: sums have another order. The state has none."""


def travel(folder: Path, hops: list[tuple[int, Hop]], **settings: Any) -> dict[str, Seen]:
    """Take hops on their numbers of ranks, starting as few processes as possible.

    Every hop but the first loads what the one before it saved.
    """
    names = [None, *(hop.name for _, hop in hops)]
    seen: dict[str, Seen] = {}
    while hops:
        done, world_size = len(seen), hops[0][0]
        length = next((i for i, (size, _) in enumerate(hops) if size != world_size), len(hops))
        together = [
            replace(hop, source=names[done + index], **settings)
            for index, (_, hop) in enumerate(hops[:length])
        ]
        leader, *_ = run_distributed(take_hops, world_size, str(folder), together)
        seen |= {hop.name: each for hop, each in zip(together, leader, strict=True)}
        hops = hops[length:]
    return seen


def assert_same_state(seen: dict[str, Seen], tolerance: float) -> None:
    """Compare every hop with the first."""
    expected, *others = seen.values()
    names = list(seen)[1:]
    for name, each in zip(names, others, strict=True):
        assert differing(each.state, expected.state) == [], name
        assert wrong_copies(each, expected) == [], name
        assert each.steps == expected.steps == {STEPS_TAKEN}, name
        assert each.counters == expected.counters, name
        assert each.next_losses == pytest.approx(expected.next_losses, rel=tolerance, abs=0), name


def wrong_copies(seen: Seen, expected: Seen) -> list[str]:
    """Return the weights of the model that differ from the first hop's."""
    return [
        name
        for name, value in seen.model.items()
        if not value.equal(expected.model[original_name(name, WHOLE)])
    ]


@pytest.mark.distributed
def test_one_state_goes_through_layouts_bit_for_bit(tmp_path: Path) -> None:
    """The hops are data 1 to 2, ZeRO 1 to 3 to 1 to 2, tensor and pipeline 1 to 2 to 1."""
    hops = [
        (1, Hop(name="one process")),
        (2, Hop(name="data 2, ZeRO 3", zero=3)),
        (2, Hop(name="tensor 2", tensor=2)),
        (2, Hop(name="pipeline 2", pipeline=2)),
        (2, Hop(name="data 2, ZeRO 2", zero=2)),
    ]

    seen = travel(tmp_path, hops)

    assert len(seen) == len(hops)
    assert_same_state(seen, TOLERANCE[torch.float32])


@pytest.mark.distributed
def test_a_state_in_groups_of_parameters_goes_through_layouts_bit_for_bit(tmp_path: Path) -> None:
    """One hop has no groups: other groups are another layout. The stages have different ones."""
    hops = [
        (1, Hop(name="one process", has_groups=True)),
        (2, Hop(name="data 2, ZeRO 3", zero=3, has_groups=True)),
        (2, Hop(name="tensor 2, no groups", tensor=2)),
        (2, Hop(name="pipeline 2", pipeline=2, has_groups=True)),
    ]

    seen = travel(tmp_path, hops)

    assert len(seen) == len(hops)
    assert_same_state(seen, TOLERANCE[torch.float32])


LONG_JOURNEY = [
    (1, Hop(name="one process")),
    (2, Hop(name="data 2")),
    (2, Hop(name="ZeRO 2", zero=2)),
    (2, Hop(name="ZeRO 3", zero=3)),
    (2, Hop(name="ZeRO 1 again")),
    (4, Hop(name="data 4")),
    (4, Hop(name="tensor 2, ZeRO 3", tensor=2, zero=3)),
    (4, Hop(name="tensor 2, data 2", tensor=2)),
    (2, Hop(name="pipeline 2", pipeline=2)),
    (2, Hop(name="offloaded", offload=True)),
    (2, Hop(name="offloaded, ZeRO 3", zero=3, offload=True)),
    (4, Hop(name="tensor 2, pipeline 2", tensor=2, pipeline=2)),
    (4, Hop(name="pipeline 2, data 2", pipeline=2)),
    (1, Hop(name="one again")),
]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_long_journey_changes_nothing(tmp_path: Path, precision: torch.dtype) -> None:
    """The hops visit every engine, with tied embeddings and an end-to-end reconstructor."""
    seen = travel(tmp_path, LONG_JOURNEY, precision=precision, model=WHOLE)

    assert len(seen) == len(LONG_JOURNEY)
    assert_same_state(seen, TOLERANCE[precision])


def spoil(launch: Launch, folder: str) -> tuple[dict[str, list[str]], str]:
    """Load a state and corrupt parts of it on rank 1.

    Returns:
        the result of `find_differences` by the corrupted part, and the error of `load_resharded`
        when its loading corrupts something.
    """
    device = start_processes(launch, timeout_seconds=60)
    groups = build_groups(1, 1, device)
    take_hop(Path(folder), Hop(name="origin"), groups)
    hop = Hop(name="spoiled", source="origin", zero=2)
    engine, _ = start_hop(hop, groups)
    load(engine, Path(folder), hop)
    run_dir = Path(folder) / "origin"
    checkpoint = RunFolder(run_dir).checkpoint(STEPS_TAKEN)
    consolidated = find_consolidated(checkpoint, run_dir)
    assert consolidated is not None
    state = consolidated.open()
    found = {"nothing": find_differences(engine, state)}
    for what, tensor in optimizer_tensors(engine).items():
        change_last_bit(tensor, launch)
        found[what] = find_differences(engine, state)
        change_last_bit(tensor, launch)
    first = next(engine.deepspeed_engine.module.parameters())
    place, first._hp_mapping = first._hp_mapping, None
    found["a piece"] = find_differences(engine, state)
    first._hp_mapping = place

    def load_and_spoil(engine: Engine, source: WholeState) -> None:
        load_whole_state(engine, source)
        change_last_bit(optimizer_tensors(engine)["exp_avg"], launch)

    reshard.load_whole_state = load_and_spoil  # type: ignore[attr-defined]  # in this process only
    try:
        reshard.load_resharded(engine, checkpoint, run_dir)
    except reshard.ReshardError as error:
        return found, str(error)
    return found, "it went on"


def optimizer_tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """Return the tensors of the first group's state, and the model's first parameter."""
    zero = engine.deepspeed_engine.optimizer
    flat = zero.single_partition_of_fp32_groups[0]
    model = next(engine.deepspeed_engine.module.parameters())
    return {"fp32": flat, "the model": model, **zero.optimizer.state[flat]}


def change_last_bit(tensor: torch.Tensor, launch: Launch) -> None:
    """Change the first value by one unit in the last place, or back again, on rank 1."""
    if launch.rank == 1:
        tensor.detach().reshape(-1)[:1].view(torch.int32).bitwise_xor_(1)


@pytest.mark.distributed
def test_one_bit_that_differs_on_one_rank_is_found_and_named(tmp_path: Path) -> None:
    (found_by_0, error), (found_by_1, same_error) = run_distributed(spoil, 2, str(tmp_path))

    assert found_by_1.pop("nothing") == []
    for what, expected in {
        "fp32": r"fp32 of \S+",
        "exp_avg": r"exp_avg of \S+",
        "exp_avg_sq": r"exp_avg_sq of \S+",
        WEIGHT_AVERAGE: rf"{WEIGHT_AVERAGE} of \S+",
        "step": "the optimizer's count of updates",
        "the model": r"the model's \S+",
        "a piece": r"\d+ of \d+ values of \S+ are held",
    }.items():
        (difference,) = found_by_1.pop(what)
        assert re.fullmatch(expected, difference)
    assert not found_by_1
    assert re.fullmatch(r"\d+ of \d+ values of \S+ are held", found_by_0.pop("a piece")[0])
    assert not any(found_by_0.values())  # a missing piece is found on every rank
    assert re.search(r"as it was: rank 1: exp_avg of \S+, 1 in all\.", error)
    assert same_error == error


SHORT_TIMEOUT = 10  # of collectives, in seconds; the rendezvous has another


def wait_for_a_slow_leader(launch: Launch, folder: str) -> list[str]:
    """Let the leader take longer than the timeout of collectives, then succeed or fail."""
    start_processes(launch, timeout_seconds=SHORT_TIMEOUT)

    def consolidate(checkpoint: Path, run_dir: Path) -> None:
        time.sleep(1.5 * SHORT_TIMEOUT if checkpoint.name == "good" else 0)
        if checkpoint.name == "bad":
            raise ValueError("it could not be consolidated: disk full")

    reshard.write_consolidated = consolidate  # type: ignore[assignment]  # in this process only
    ends = []
    for name in ("good", "bad"):
        try:
            reshard.consolidate_on_leader(Path(folder, name), Path(folder), launch.rank)
            ends.append("went on")
        except ValueError as error:
            ends.append(str(error))
    return ends


@pytest.mark.slow  # it sleeps
@pytest.mark.distributed
def test_ranks_wait_longer_for_the_leader_than_for_a_step(tmp_path: Path) -> None:
    ends = run_distributed(wait_for_a_slow_leader, 2, str(tmp_path))

    assert ends == [["went on", "it could not be consolidated: disk full"]] * 2


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        pytest.param(1, {}, id="one process"),
        pytest.param(2, {"tensor_parallel_size": 2}, id="tensor 2"),
    ],
)
def test_a_run_goes_on_under_another_layout(
    tmp_path: Path, world_size: int, layout: dict[str, int]
) -> None:
    """The whole run: it finds the checkpoint and the other layout, and has the same losses."""
    data = make_data_set(tmp_path / "data")
    config = run_of(data, tmp_path / "first", {})
    run_distributed(pretrain_here, 2, config)
    going_on = run_of(data, tmp_path / "second", layout)
    shutil.copytree(config.run_dir, going_on.run_dir)
    last = RunFolder(Path(going_on.run_dir)).checkpoint(4)
    shutil.rmtree(last)  # so that it resumes after step 2
    metrics = RunFolder(Path(going_on.run_dir)).metrics
    first_two = metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:2]
    metrics.write_text("".join(first_two), encoding="utf-8")

    run_distributed(pretrain_here, world_size, going_on)

    assert read_checkpoint_manifest(last)["layout"]["data_parallel_size"] == 1
    before, after = (losses_of(Path(each.run_dir)) for each in (config, going_on))
    assert after[3] == pytest.approx(before[3], rel=TOLERANCE[torch.float32], abs=0)
    assert after[4] == pytest.approx(before[4], rel=1e-4, abs=0)  # after its own step


def run_of(data: DataSet, folder: Path, layout: dict[str, int]) -> PretrainConfig:
    return run_on(tiny_run(folder, steps=4, save_every=2, **layout), data)


def losses_of(run_dir: Path) -> dict[int, float]:
    """Return the last recorded loss of each step."""
    lines = RunFolder(run_dir).metrics.read_text(encoding="utf-8").splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}
