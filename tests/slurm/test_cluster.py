"""The tests' cluster ends with them, even after a SIGKILL."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, missing_programs, wait_until
from tests.slurm.jobs import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing_programs()), reason="apt-get install slurm-wlm munge"),
]

_HOLD_A_CLUSTER = """
import signal, sys
from pathlib import Path
from tests.slurm.cluster import SlurmCluster

with SlurmCluster(folder=Path(sys.argv[1])) as cluster:
    job = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=exec sleep 600").stdout
    cluster.wait_for_job(job.strip(), "RUNNING")
    Path(sys.argv[1], "is_held").touch()
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name)
def test_no_process_of_a_cluster_outlives_who_started_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    left = SlurmCluster(folder=tmp_path / "cluster")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD_A_CLUSTER, left.folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_until((left.folder / "is_held").exists, "the cluster runs a job")
        seen = {process.name() for process in left.processes()}
        assert {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"} <= seen
    finally:
        holder.send_signal(number)
        holder.wait()

    wait_until(lambda: not left.processes(), "all processes of the cluster are gone")
