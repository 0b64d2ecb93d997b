"""On a real Slurm of two nodes a run trains, stops, is requeued and ends with the same bits."""

import json
from pathlib import Path

import pytest

from launch.drills.data_set import DataSet
from tests.slurm.cluster import SlurmCluster, suspended
from tests.slurm.jobs import NUM_RANKS, Trial, start_trial

STEPS = 40
STRUCK_AT = 13

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.distributed,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def undisturbed(
    cluster: SlurmCluster, data: DataSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trial, str]:
    """Return an undisturbed run and its job."""
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


def test_a_warning_signal_saves_requeues_and_resumes(
    undisturbed: tuple[Trial, str], data: DataSet, tmp_path: Path
) -> None:
    trial, job = _trial_at_work(undisturbed[0], data, tmp_path / "warned")

    trial.cluster.run("scancel", "--signal=USR1", job)
    stopped = trial.wait_for_requeue(job)

    assert stopped["step"] > STRUCK_AT
    assert (stopped["reason"], stopped["requeued"]) == ("user_signal", True)
    _ends_as(undisturbed[0], trial, job)


def test_a_job_near_its_time_limit_is_warned_saves_requeues_and_resumes(
    undisturbed: tuple[Trial, str], data: DataSet, tmp_path: Path
) -> None:
    # Slurm checks limits every 30 s and warns up to 30 s early: 30 to 60 s after the start.
    trial, job = _trial_at_work(undisturbed[0], data, tmp_path / "out_of_time", "--time=4")

    with suspended(trial.cluster.rank(job, 3)):  # a step that lasts until the warning
        trial.wait_for_words("SIGUSR1 or SIGUSR2 arrived", job)
    stopped = trial.wait_for_requeue(job)

    assert (stopped["reason"], stopped["requeued"]) == ("user_signal", True)
    _ends_as(undisturbed[0], trial, job)


def test_a_killed_rank_ends_the_others_and_the_job_is_requeued(
    undisturbed: tuple[Trial, str], data: DataSet, tmp_path: Path
) -> None:
    trial, job = _trial_at_work(undisturbed[0], data, tmp_path / "rank_killed")

    trial.cluster.rank(job, 3).kill()

    told = _ends_as(undisturbed[0], trial, job)
    assert told["Restarts"] == "1"


def test_a_node_that_fails_is_waited_for_and_the_run_resumes(
    undisturbed: tuple[Trial, str], data: DataSet, tmp_path: Path
) -> None:
    trial, job = _trial_at_work(undisturbed[0], data, tmp_path / "node_killed")

    trial.cluster.kill_node("n2")
    trial.cluster.wait_for_job(job, "PENDING")
    trial.cluster.start_node("n2")

    told = _ends_as(undisturbed[0], trial, job)
    assert told["Restarts"] == "1"


def _trial_at_work(
    undisturbed: Trial, data: DataSet, folder: Path, *words: str
) -> tuple[Trial, str]:
    """Return a run that has reached the step of its fault, and its job."""
    trial = start_trial(undisturbed.cluster, data, folder, STEPS)
    job = trial.submit(*words)
    trial.wait_for_step(STRUCK_AT, job)
    return trial, job


def _ends_as(undisturbed: Trial, trial: Trial, job: str) -> dict[str, str]:
    """Wait for the end of a job and compare its run with the undisturbed one."""
    told = trial.finish(job)
    assert trial.run.losses() == undisturbed.run.losses()
    assert trial.run.state_digest() == undisturbed.run.state_digest()
    return told
