"""Look at one machine before a run starts on it, and write down what it is.

A node with a missing GPU, a full disk or a wrong clock is found in seconds and by its name, not
after the ranks of all nodes have waited for each other. The first node opens the port at which the
ranks will meet; the others reach it, say who they are and compare clocks. Nothing is assumed of
the cluster: what was asked for is what Slurm says was asked for.

Source: ours; the clocks are compared as in NTP (RFC 5905, section 8), by one exchange.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.storage.files import write_json
from launch.cluster.node_meeting import Meeting, greet, receive
from launch.cluster.node_record import list_gpus, record_node

_GIGABYTE = 10**9
_SHARED_MEMORY = Path("/dev/shm")


def main(words: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Check this node; print every problem with its name and return the exit code."""
    options = _options(words)
    nodes = options.nodes.split(",")
    node = environment.get("SLURMD_NODENAME", nodes[0])
    folder = Path(options.folder)
    problems = [
        *gpu_problems(gpus_asked(environment), list_gpus()),
        *space_problems(folder, options.free_gigabytes),
        *space_problems(_SHARED_MEMORY, options.shared_memory_gigabytes),
    ]
    meeting = Meeting(
        host=environment.get("MASTER_ADDR", ""),
        port=int(environment.get("MASTER_PORT", "0")),
        seconds=options.seconds,
    )
    if len(nodes) > 1:
        is_first = node == nodes[0]
        problems += (
            receive(meeting, nodes[1:])
            if is_first
            else clock_problems(greet(meeting, node), options.most_skew_seconds)
        )
    if folder.is_dir():
        start = environment.get("SLURM_RESTART_COUNT", "0")
        write_json(folder / f"node-{node}-{start}.json", record_node(node, environment))
    for problem in problems:
        print(f"node {node}: {problem}", file=sys.stderr)
    return ExitCode.FAILED if problems else ExitCode.DONE


def gpus_asked(environment: Mapping[str, str]) -> int:
    """Return the GPUs per node that the job asked for: Slurm writes 8, h100:8 or nothing."""
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        if name in environment:
            return int(environment[name].rpartition(":")[2])
    return 0


def gpu_problems(asked: int, gpus: Sequence[str] | None) -> list[str]:
    """Say what is wrong with a node's GPUs.

    Args:
        asked: GPUs that the job asked for.
        gpus: a line per GPU; None: the driver does not answer.
    """
    if gpus is None:
        return ["nvidia-smi gives no answer: the driver or a GPU hangs, restart the node"]
    if len(gpus) < asked:
        return [f"{len(gpus)} GPUs seen, {asked} asked (nvidia-smi lists them): one has failed"]
    return []


def space_problems(folder: Path, least_gigabytes: float) -> list[str]:
    """Say whether a folder is missing, or has less free space than it should."""
    if not folder.is_dir():
        return [f"{folder} is not there: it must be on storage that all nodes share"]
    free = shutil.disk_usage(folder).free / _GIGABYTE
    if free < least_gigabytes:
        return [f"{free:.1f} GB free in {folder}, {least_gigabytes:g} GB needed: make room"]
    return []


def clock_problems(answer: float | str, most_seconds: float) -> list[str]:
    """Say whether the first node was not reached, or its clock differs.

    Args:
        answer: seconds that the first node's clock is ahead, or why it is not known.
        most_seconds: that clocks may differ.
    """
    if isinstance(answer, str):
        return [answer]
    if abs(answer) > most_seconds:
        return [
            f"its clock is {abs(answer):.1f} s {'behind' if answer > 0 else 'ahead of'} the first "
            f"node's, at most {most_seconds:g} s are allowed: see chronyc tracking"
        ]
    return []


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.cluster.check_node", description=__doc__)
    parser.add_argument("--folder", required=True, help="shared folder for what is written down")
    parser.add_argument("--nodes", required=True, help="names of all nodes, the first one first")
    parser.add_argument("--free-gigabytes", type=float, default=1.0, help="in the folder")
    parser.add_argument("--shared-memory-gigabytes", type=float, default=1.0, help="in /dev/shm")
    parser.add_argument("--most-skew-seconds", type=float, default=30.0, help="between clocks")
    parser.add_argument("--seconds", type=float, default=60.0, help="that nodes wait for others")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
