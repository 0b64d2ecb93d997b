"""Settings of a run's machines, and refused ones."""

import getpass
import os
from pathlib import Path

import pytest

from ernie_vilg.config.cluster import ClusterConfig, SlurmConfig
from ernie_vilg.errors import InputError
from launch.support.composition import compose_program
from launch.support.environment import add_variables, prepare_gpu


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

    assert cluster.environment == {
        "NCCL_DEBUG": "WARN",
        "NCCL_IB_TIMEOUT": "22",
        "TORCHINDUCTOR_CACHE_DIR": "/var/tmp/ernie_vilg-kernels-$USER",
    }
    assert run.gpu.peak_flops == 989e12
    assert cluster.slurm.world_size == 8


def test_what_the_launcher_has_set_stands() -> None:
    environment = {"NCCL_DEBUG": "INFO"}

    add_variables({"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22"}, environment)

    assert environment == {"NCCL_DEBUG": "INFO", "NCCL_IB_TIMEOUT": "22"}


def test_user_stands_for_the_name_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "mei")
    environment: dict[str, str] = {}

    add_variables({"TORCHINDUCTOR_CACHE_DIR": "/var/tmp/kernels-$USER"}, environment)

    assert environment == {"TORCHINDUCTOR_CACHE_DIR": "/var/tmp/kernels-mei"}


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr(getpass, "getuser", nameless)
    environment: dict[str, str] = {}

    add_variables({"A": "$USER"}, environment)

    assert environment == {"A": str(os.getuid())}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_grows_its_segments_unless_it_is_set(name: str) -> None:
    fresh: dict[str, str] = {}
    chosen = {name: "max_split_size_mb:512"}

    prepare_gpu(fresh)
    prepare_gpu(chosen)

    assert fresh == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    assert chosen == {name: "max_split_size_mb:512", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def test_split_layers_get_one_queue_into_the_gpu_unless_it_is_set() -> None:
    whole: dict[str, str] = {}
    split: dict[str, str] = {}
    chosen = {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}

    prepare_gpu(whole)
    prepare_gpu(split, tensor_parallel_size=2)
    prepare_gpu(chosen, tensor_parallel_size=2)

    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    assert [each.get(name) for each in (whole, split, chosen)] == [None, "1", "8"]


def test_the_folder_of_compiled_kernels_is_made_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "of mine" / "kernels"

    prepare_gpu({"TORCHINDUCTOR_CACHE_DIR": str(folder)})

    assert folder.stat().st_mode & 0o777 == 0o700


def test_kernels_that_others_can_write_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(InputError, match=f"TORCHINDUCTOR_CACHE_DIR={tmp_path}: other users can"):
        prepare_gpu({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})


def test_a_folder_of_kernels_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    # A preset may have set the variable: a single + would be refused.
    remedy = (
        r"no folder can be made there .*as in \+\+cluster\.environment\.TORCHINDUCTOR_CACHE_DIR="
    )
    with pytest.raises(InputError, match=remedy):
        prepare_gpu({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "kernels")})
