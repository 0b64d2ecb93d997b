"""Two hosts train one run without a scheduler: with a hostfile and pdsh, and with torchrun."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.drills.data_set import DataSet, make_data_set
from launch.drills.runs import DrilledRun
from launch.support.composition import compose_program
from tests.launch.two_hosts import ADDRESSES, INTERFACE, TwoHosts, why_not
from tests.slurm.jobs import ROOT, tiny_settings

PROGRAMS = Path(sys.executable).parent
STEPS = 4
PORT = "29871"  # no other process is in the namespaces

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with TwoHosts(folder=tmp_path_factory.mktemp("hosts") / "two") as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("hosts_data") / "data")


def settings(data: DataSet, run_dir: Path) -> tuple[str, ...]:
    return (
        *tiny_settings(data, run_dir, STEPS),
        # This machine's name does not resolve to an address of the namespaces.
        f"+cluster.environment.GLOO_SOCKET_IFNAME={INTERFACE}",
    )


def environment(hosts: TwoHosts) -> dict[str, str]:
    path = f"{PROGRAMS}{os.pathsep}{hosts.environment['PATH']}"
    return {**hosts.environment, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def losses(words: tuple[str, ...], folder: Path) -> dict[int, float]:
    config = compose_program("pretrain", words)
    return DrilledRun(folder=folder, config=config, num_ranks=4).losses()


def train_by_hostfile(hosts: TwoHosts, words: tuple[str, ...], folder: Path) -> str:
    hostfile = folder / "hosts.txt"
    hostfile.write_text("".join(f"{address} slots=2\n" for address in ADDRESSES))
    done = subprocess.run(
        [
            *hosts.on(0), str(PROGRAMS / "deepspeed"), "--hostfile", str(hostfile),
            "--no_ssh_check", "--master_addr", ADDRESSES[0], "--master_port", PORT,
            "launch/pretrain.py", *words,
        ],
        cwd=ROOT, env=environment(hosts), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def train_by_torchrun(hosts: TwoHosts, words: tuple[str, ...]) -> None:
    agents = [
        subprocess.Popen(
            [
                *hosts.on(index), str(PROGRAMS / "torchrun"), "--nnodes=2", "--nproc-per-node=2",
                f"--node-rank={index}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}",
                "launch/pretrain.py", *words,
            ],
            cwd=ROOT, env=environment(hosts), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], b"".join(outputs).decode()


def test_hostfile_with_pdsh_and_torchrun_on_each_train_the_same_run(
    hosts: TwoHosts, data: DataSet, tmp_path: Path
) -> None:
    by_hostfile, by_torchrun = (settings(data, tmp_path / name) for name in ("pdsh", "torchrun"))

    said = train_by_hostfile(hosts, by_hostfile, tmp_path)
    train_by_torchrun(hosts, by_torchrun)

    assert all(f"{address}: " in said for address in ADDRESSES)  # pdsh's mark before each line
    assert sorted(losses(by_hostfile, tmp_path)) == list(range(1, STEPS + 1))
    assert losses(by_hostfile, tmp_path) == losses(by_torchrun, tmp_path)
