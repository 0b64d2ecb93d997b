"""On a real Slurm of two nodes, a run trains, stops, comes back and ends with the same bits."""

import json

import pytest

from launch.drills.data_set import DataSet
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import NUM_RANKS, Trial, start_trial

STEPS = 60

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.distributed]


@pytest.fixture(scope="module")
def undisturbed(
    cluster: SlurmCluster, data: DataSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trial, str]:
    """Return a run that nothing happened to, and its job."""
    trial = start_trial(cluster, data, tmp_path_factory.mktemp("slurm") / "undisturbed", STEPS)
    job = trial.submit()
    trial.finish(job)
    return trial, job


def test_two_nodes_of_two_tasks_train(undisturbed: tuple[Trial, str]) -> None:
    trial, job = undisturbed

    assert sorted(trial.run.losses()) == list(range(1, STEPS + 1))
    assert trial.run.newest_step() == STEPS
    ranks = sorted(path.name.split("-")[0] for path in trial.logs(job).glob("rank_*.log"))
    assert ranks == [f"rank_{rank}" for rank in range(NUM_RANKS)]
    nodes = [json.loads(path.read_text()) for path in sorted(trial.logs(job).glob("node-*.json"))]
    assert [node["node"] for node in nodes] == ["n1", "n2"]
    assert nodes[1]["environment"]["SLURM_JOB_ID"] == job
