"""Settings of a run's machines, and refused ones."""

import pytest

from ernie_vilg.config.cluster import ClusterConfig, SlurmConfig
from launch.support.composition import compose_program
from launch.support.environment import add_variables


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("00:10:00", 600), ("1-00:00:00", 86400), ("2-03:04:05", 183845), ("48:00:00", 172800)],
)
def test_time_limits(limit: str, seconds: int) -> None:
    assert SlurmConfig(time_limit=limit).time_limit_seconds == seconds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"nodes": 0}, r"cluster\.slurm\.nodes=0: must be at least 1", id="nodes"),
        pytest.param({"gpus_per_node": 4}, "every rank drives one GPU", id="idle ranks"),
        pytest.param({"time_limit": "90"}, "write HH:MM:SS", id="minutes, or seconds?"),
        pytest.param({"time_limit": "00:03:00"}, "asked to stop when it starts", id="warning"),
        pytest.param({"options": ("--nodes=3",)}, "a setting of its own", id="nodes twice"),
        pytest.param({"options": ("qos",)}, "must be an option of sbatch", id="no option"),
    ],
)
def test_wrong_requests_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlurmConfig(**settings)  # type: ignore[arg-type]


def test_a_variable_in_small_letters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cluster\.environment\.nccl_debug: write"):
        ClusterConfig(environment={"nccl_debug": "WARN"})


def test_a_cluster_adds_to_the_one_that_it_is_made_from() -> None:
    run = compose_program("pretrain", ["experiment=quickstart", "cluster=slurm"])
    cluster = run.cluster

    assert cluster.environment == {"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22"}
    assert run.gpu.peak_flops == 989e12
    assert cluster.slurm.world_size == 8


def test_what_the_launcher_has_set_stands() -> None:
    environment = {"NCCL_DEBUG": "INFO"}

    add_variables({"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22"}, environment)

    assert environment == {"NCCL_DEBUG": "INFO", "NCCL_IB_TIMEOUT": "22"}
