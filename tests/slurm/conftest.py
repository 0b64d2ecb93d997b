"""A cluster for the tests of this folder, and a data set that its jobs train on."""

from collections.abc import Iterator

import pytest

from launch.drills.data_set import DataSet, make_data_set
from tests.slurm.cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    with SlurmCluster(folder=tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("slurm_data") / "data")
