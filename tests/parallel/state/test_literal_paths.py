"""A folder is read by its name, even if the name is a pattern that matches other folders."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ernie_vilg.config.launch import Launch
from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG, Engine
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.state.consolidate import gather_weights
from tests.distributed import run_distributed
from tests.parallel.parity import micro_batches
from tests.parallel.resharding import LEARNING_RATE, Hop, start_hop
from tests.parallel.saved import save_to

NEIGHBOURS = {"run[1]": "run1", "run*": "run2", "run?": "run3", "[a-c]": "b", "[!x]": "y"}
"""Names of folders, and of neighbours that they match as patterns."""


def sums_of(engine: Engine) -> list[float]:
    return [float(weight.detach().double().sum()) for _, weight in engine.local_parameters()]


def save_and_load(launch: Launch, folder: Path, hop: Hop) -> dict[str, bool]:
    """Save another state in every neighbour, and test whether each folder loads its own state.

    The leader gathers whole weights from it as well, whose sum must not be a neighbour's.
    """
    groups = build_groups(hop.tensor, hop.pipeline, start_processes(launch, timeout_seconds=60))
    engine, config = start_hop(hop, groups)
    tempfile.tempdir = str(folder / "tmp[1]")
    names = [*NEIGHBOURS, *NEIGHBOURS.values()]
    saved = {}
    for step, name in enumerate(names):
        engine.train_batch(micro_batches(groups, config, step), LEARNING_RATE)
        save_to(engine, folder / name / "checkpoint")
        saved[name] = sums_of(engine)
    is_own = {}
    for name in NEIGHBOURS:
        engine.load(folder / name / "checkpoint")
        is_own[f"{name} is loaded"] = sums_of(engine) == saved[name]
        dist.barrier()
    if launch.rank == 0:
        gathered = {
            name: gather_weights(folder / name / "checkpoint" / CHECKPOINT_TAG) for name in names
        }
        for name, other in NEIGHBOURS.items():
            is_own[f"{name} is gathered"] = any(
                not torch.equal(value, gathered[other][key])
                for key, value in gathered[name].items()
            )
    return is_own


def load_beside_one(launch: Launch, folder: Path, hop: Hop) -> tuple[list[float], list[float]]:
    """Save run[1] and then run1 in another state; return the state of run[1], saved and loaded."""
    groups = build_groups(hop.tensor, hop.pipeline, start_processes(launch, timeout_seconds=60))
    engine, config = start_hop(hop, groups)
    states = []
    for step, name in enumerate(("run[1]", "run1")):
        engine.train_batch(micro_batches(groups, config, step), LEARNING_RATE)
        save_to(engine, folder / name / "checkpoint")
        states.append(sums_of(engine))
    assert states[0] != states[1]
    engine.load(folder / "run[1]" / "checkpoint")
    return states[0], sums_of(engine)


ENGINES = pytest.mark.parametrize(
    "hop",
    [
        pytest.param(Hop(name="plain"), id="plain"),
        pytest.param(Hop(name="p", pipeline=2), id="pipeline"),
    ],
)


@pytest.mark.distributed
@ENGINES
def test_the_only_neighbour_that_a_name_matches_is_not_loaded(tmp_path: Path, hop: Hop) -> None:
    for saved, loaded in run_distributed(load_beside_one, 2, tmp_path, hop):
        assert loaded == saved


@pytest.mark.distributed
@ENGINES
def test_a_folder_whose_name_matches_others_is_the_one_that_is_read(
    tmp_path: Path, hop: Hop
) -> None:
    (tmp_path / "tmp[1]").mkdir()

    leader, other = run_distributed(save_and_load, 2, tmp_path, hop)

    assert leader == dict.fromkeys(leader, True)
    assert other == dict.fromkeys(other, True)
