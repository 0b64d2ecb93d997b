"""Node health check: checks one machine before a run starts on it, and records what it is.

It finds a node with a missing GPU, a full disk or a wrong clock in seconds and by name, before the
ranks of all nodes wait for each other. The first node opens the port of the ranks' rendezvous; the
others connect to it, send their names and compare clocks. Slurm says how many GPUs the job asked
for.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.storage.files import write_json
from launch.cluster.node_record import list_gpus, record_node
from launch.cluster.node_rendezvous import NodeRendezvous, reach_first_node, wait_for_nodes

_GIGABYTE = 10**9
_SHARED_MEMORY = Path("/dev/shm")


def main(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> int:
    """Check this node; print every problem with the node's name and return the exit code."""
    options = _options(arguments)
    nodes = options.nodes.split(",")
    node = environment.get("SLURMD_NODENAME", nodes[0])
    folder = Path(options.folder)
    problems = [
        *gpu_problems(gpus_asked(environment), list_gpus()),
        *space_problems(folder, options.free_gigabytes),
        *space_problems(_SHARED_MEMORY, options.shared_memory_gigabytes),
    ]
    rendezvous = NodeRendezvous(
        host=environment.get("MASTER_ADDR", ""),
        port=int(environment.get("MASTER_PORT", "0")),
        seconds=options.seconds,
    )
    if len(nodes) > 1:
        is_first = node == nodes[0]
        problems += (
            wait_for_nodes(rendezvous, nodes[1:])
            if is_first
            else clock_problems(reach_first_node(rendezvous, node), options.most_skew_seconds)
        )
    if folder.is_dir():
        start = environment.get("SLURM_RESTART_COUNT", "0")
        write_json(folder / f"node-{node}-{start}.json", record_node(node, environment))
    for problem in problems:
        print(f"node {node}: {problem}", file=sys.stderr)
    return ExitCode.FAILED if problems else ExitCode.DONE


def gpus_asked(environment: Mapping[str, str]) -> int:
    """Return the GPUs per node that the job asked for; Slurm writes 8, h100:8 or nothing."""
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        if name in environment:
            return int(environment[name].rpartition(":")[2])
    return 0


def gpu_problems(asked: int, gpus: Sequence[str] | None) -> list[str]:
    """Return the problems of a node's GPUs.

    Args:
        asked: GPUs that the job asked for.
        gpus: a line per GPU; None if the driver does not answer.
    """
    if gpus is None:
        return ["nvidia-smi does not answer: the driver or a GPU hangs, restart the node"]
    if len(gpus) < asked:
        return [f"{len(gpus)} GPUs seen, {asked} asked (nvidia-smi lists them): one has failed"]
    return []


def space_problems(folder: Path, least_gigabytes: float) -> list[str]:
    """Return whether a folder is missing, or has less free space than required."""
    if not folder.is_dir():
        return [f"{folder} does not exist: it must be on storage that all nodes share"]
    free = shutil.disk_usage(folder).free / _GIGABYTE
    if free < least_gigabytes:
        return [f"{free:.1f} GB free in {folder}, {least_gigabytes:g} GB needed: free some"]
    return []


def clock_problems(answer: float | str, most_seconds: float) -> list[str]:
    """Return whether the first node was not reached, or its clock differs.

    Args:
        answer: seconds by which the first node's clock is ahead, or why they are unknown.
        most_seconds: largest difference of clocks.
    """
    if isinstance(answer, str):
        return [answer]
    if abs(answer) > most_seconds:
        return [
            f"its clock is {abs(answer):.1f} s {'behind' if answer > 0 else 'ahead of'} the first "
            f"node's, at most {most_seconds:g} s are allowed: see chronyc tracking"
        ]
    return []


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.cluster.check_node", description=__doc__)
    parser.add_argument("--folder", required=True, help="shared folder for the records")
    parser.add_argument("--nodes", required=True, help="names of all nodes, in order")
    parser.add_argument("--free-gigabytes", type=float, default=1.0, help="in the folder")
    parser.add_argument("--shared-memory-gigabytes", type=float, default=1.0, help="in /dev/shm")
    parser.add_argument("--most-skew-seconds", type=float, default=30.0, help="between clocks")
    parser.add_argument("--seconds", type=float, default=60.0, help="to wait for other nodes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
