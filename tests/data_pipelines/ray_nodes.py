"""A Ray of two nodes with one CPU each, both on this machine."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_STORE_BYTES = 80 * 1024**2  # about the least that Ray takes


@dataclass(frozen=True)
class RayNodes:
    """Cluster to which tests connect."""

    cluster: Any

    @property
    def address(self) -> str:
        """Return its address."""
        address: str = self.cluster.address
        return address

    def add(self) -> Any:
        """Start one more node."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)

    def kill(self, node: Any) -> None:
        """Kill a node's processes, without a word to the others."""
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """Start the nodes, which end with the block, as does the connection of this process."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # names of sockets must be short
    variables = {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 only
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        nodes = RayNodes(Cluster(initialize_head=True, head_node_args=head))
        try:
            nodes.add()
            yield nodes
        finally:
            ray.shutdown()
            nodes.cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder, by their path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
