"""The node health check names an unhealthy node before any rank starts."""

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.system.ports import free_port
from launch.cluster import check_node, node_record
from launch.cluster.check_node import gpu_problems, gpus_asked, main, space_problems
from launch.cluster.node_record import launch_variables
from launch.cluster.node_rendezvous import NodeRendezvous, reach_first_node, wait_for_nodes


def a_rendezvous(seconds: float = 20.0) -> NodeRendezvous:
    return NodeRendezvous(host="127.0.0.1", port=free_port(), seconds=seconds)


def connect(rendezvous: NodeRendezvous) -> socket.socket:
    """Connect to a rendezvous that is about to be opened."""
    while True:
        try:
            return socket.create_connection((rendezvous.host, rendezvous.port))
        except ConnectionRefusedError:
            time.sleep(0.05)


def waiting(rendezvous: NodeRendezvous, others: list[str], problems: list[str]) -> threading.Thread:
    """Return a thread that waits as the first node and collects its problems."""
    return threading.Thread(target=lambda: problems.extend(wait_for_nodes(rendezvous, others)))


def test_nodes_connect_and_compare_clocks() -> None:
    rendezvous = a_rendezvous()
    problems: list[str] = []
    first = threading.Thread(
        target=lambda: problems.extend(wait_for_nodes(rendezvous, ["n2", "n3"]))
    )
    first.start()

    skews = [reach_first_node(rendezvous, name) for name in ("n2", "n3")]
    first.join()

    assert problems == []
    assert all(isinstance(skew, float) and abs(skew) < 5 for skew in skews)


def test_the_port_is_free_at_once_afterwards() -> None:
    rendezvous = a_rendezvous()
    first = threading.Thread(target=wait_for_nodes, args=(rendezvous, ["n2"]))
    first.start()
    reach_first_node(rendezvous, "n2")
    first.join()

    with socket.socket() as ranks:  # like the store of the ranks, without SO_REUSEADDR
        ranks.bind(("", rendezvous.port))


def test_missing_nodes_are_named() -> None:
    rendezvous = a_rendezvous(seconds=1.0)
    problems: list[str] = []
    first = threading.Thread(
        target=lambda: problems.extend(wait_for_nodes(rendezvous, ["n2", "n3", "n4"]))
    )
    first.start()
    reach_first_node(rendezvous, "n3")
    first.join()

    assert problems == ["no connection from n2, n4 within 1 s"]


def test_a_silent_connection_delays_no_node() -> None:
    rendezvous = a_rendezvous(seconds=10.0)
    problems: list[str] = []
    first = waiting(rendezvous, ["n2"], problems)
    first.start()
    with connect(rendezvous):
        skew = reach_first_node(rendezvous, "n2")
        first.join()

    assert problems == []
    assert isinstance(skew, float)


def test_a_taken_port_is_reported() -> None:
    rendezvous = a_rendezvous(seconds=0.2)
    with socket.create_server(("", rendezvous.port)):
        (problem,) = wait_for_nodes(rendezvous, ["n2"])

    assert problem.startswith(f"MASTER_PORT={rendezvous.port} cannot be opened")


def test_an_unreachable_first_node_is_reported() -> None:
    rendezvous = a_rendezvous(seconds=0.2)

    answer = reach_first_node(rendezvous, "n2")

    assert isinstance(answer, str)
    assert answer.startswith(f"cannot reach MASTER_ADDR=127.0.0.1, MASTER_PORT={rendezvous.port}")


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        pytest.param({}, 0, id="no GPUs"),
        pytest.param({"SLURM_GPUS_PER_NODE": "8"}, 8, id="a number"),
        pytest.param({"SLURM_GPUS_PER_NODE": "h100:4"}, 4, id="a kind and a number"),
        pytest.param({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_NODE": "8"}, 2, id="granted"),
    ],
)
def test_gpus_asked(environment: dict[str, str], asked: int) -> None:
    assert gpus_asked(environment) == asked


def test_missing_gpus_are_reported() -> None:
    assert gpu_problems(2, ["a", "b", "c"]) == []
    assert gpu_problems(2, ["a"])[0].startswith("1 GPUs seen, 2 asked")
    assert gpu_problems(2, None)[0].startswith("nvidia-smi does not answer")


def test_a_full_or_missing_folder_is_reported(tmp_path: Path) -> None:
    assert space_problems(tmp_path, 0.0) == []
    assert "GB needed: free some" in space_problems(tmp_path, 1e9)[0]
    assert "storage that all nodes share" in space_problems(tmp_path / "none", 0.0)[0]


def test_a_wrong_clock_is_reported() -> None:
    assert check_node.clock_problems(29.0, 30.0) == []
    assert "31.0 s behind the first" in check_node.clock_problems(31.0, 30.0)[0]
    assert "31.0 s ahead of the first" in check_node.clock_problems(-31.0, 30.0)[0]


def test_a_node_with_too_few_gpus_fails_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_node, "list_gpus", lambda: ["one"])
    environment = {"SLURMD_NODENAME": "n7", "SLURM_GPUS_PER_NODE": "2", "SLURM_RESTART_COUNT": "3"}

    code = main(["--folder", str(tmp_path), "--nodes", "n7"], environment)

    assert code == ExitCode.FAILED
    assert capsys.readouterr().err.startswith("node n7: 1 GPUs seen, 2 asked")
    assert json.loads((tmp_path / "node-n7-3.json").read_text())["node"] == "n7"


def test_a_healthy_node_passes(tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--nodes", "n1", "--free-gigabytes", "0"]

    assert main([*options, "--shared-memory-gigabytes", "0"], {}) == ExitCode.DONE


def test_no_secret_is_recorded() -> None:
    environment = {
        "SLURM_JOB_ID": "7",
        "SLURM_JWT": "secret",
        "NCCL_DEBUG": "WARN",
        "WANDB_API_KEY": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HOME": "/root",
    }

    assert launch_variables(environment) == {"NCCL_DEBUG": "WARN", "SLURM_JOB_ID": "7"}


def test_a_driver_that_hangs_does_not_hang_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(node_record, "_SECONDS", 0.2)
    hung: list[subprocess.Popen[str]] = []
    # Like a process inside the kernel, on which no signal has an effect.
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: hung.append(process))

    assert node_record.list_gpus() is None

    (process,) = hung
    process.terminate()
    process.communicate()
