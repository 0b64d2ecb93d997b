"""What saving costs training, and what a killed rank costs.

    python benchmarks/checkpoint.py           # about 6 minutes
    python benchmarks/checkpoint.py --quick   # shows that it works

Two ranks on this machine train a model of 13.7 million parameters in bfloat16 under ZeRO 1. They
save in the background, blocking, and as DeepSpeed saves by itself (which neither hashes nor flushes
nor reads back), in turns, so that what else the machine does falls on all. Then one rank is killed
and both are started again, until the first step.

Prints the tables, writes outputs/benchmarks/checkpoint.json and draws docs/images/checkpoint.png.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ernie_vilg.storage.json_files import read_json

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run by its path: this folder is not installed
    sys.path.insert(0, str(ROOT))

from benchmarks.checkpoint_parts import chart  # noqa: E402
from benchmarks.loader import Requirement  # noqa: E402
from ernie_vilg.storage.files import write_json  # noqa: E402
from ernie_vilg.system.ports import free_port  # noqa: E402

OUTPUTS = Path("outputs/benchmarks")
RANKS = 2
ROUNDS = 20
"""Of five saves in the background and one of each other kind."""
STALL_SHARE = 0.2
"""Of a blocking save, that training may stand still for one in the background."""
STEPS_BEFORE_KILL = 35
RANK_MODULE = "benchmarks.checkpoint_parts.rank"

Result = dict[str, Any]


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, two rounds")
    options = parser.parse_args()
    quick = options.quick
    folder = OUTPUTS / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        saves = measure_saves(folder, rounds=2 if quick else ROUNDS, is_small=quick)
        restart = measure_restart(folder, is_small=quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    reached = requirements(saves)
    print_saves(saves)
    print_restart(restart)
    if quick:
        print("\n--quick: too little to say what is reached")
    else:
        print("\nmust reach:")
        for requirement in reached:
            print(f"  {requirement.line()}")
    suffix = "_quick" if quick else ""
    write_json(OUTPUTS / f"checkpoint{suffix}.json", {"saves": saves, "restart": restart})
    picture = OUTPUTS / "checkpoint_quick.png" if quick else ROOT / "docs/images/checkpoint.png"
    stalls = {
        "in the background": saves["stalls"],
        "blocking": saves["blocking"],
        "DeepSpeed's own": saves["deepspeed"],
    }
    chart.draw(picture, stalls, restart, limit=STALL_SHARE * statistics.median(saves["blocking"]))


# --- What is run.


def measure_saves(folder: Path, *, rounds: int, is_small: bool) -> Result:
    """Return the seconds of all saves and steps."""
    result = folder / "saves.json"
    task = {"measure": "saves", "folder": str(folder / "saves"), "rounds": rounds}
    ranks = start_ranks({**task, "is_small": is_small}, result)
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"the ranks ended with {codes}")
    found: Result = read_json(result)
    return found


def measure_restart(folder: Path, *, is_small: bool) -> dict[str, float]:
    """Kill a rank, start all again, and return the seconds until the next step by part."""
    task = {"measure": "killed", "folder": str(folder / "killed"), "is_small": is_small}
    result = folder / "before.json"
    ranks = start_ranks(task, result)
    wait_for_steps(result, ranks, STEPS_BEFORE_KILL)
    killed = time.monotonic()
    ranks[1].send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.wait()
    ended = time.monotonic()
    result = folder / "after.json"
    ranks = start_ranks(task, result)
    moments = wait_for_steps(result, ranks, 1)
    for rank in ranks:
        rank.kill()
        rank.wait()
    return {
        "the others end": ended - killed,
        "imports": moments["imported"] - ended,
        "engine": moments["built"] - moments["imported"],
        "verify and load": moments["restored"] - moments["built"],
        "first step": moments["stepped"] - moments["restored"],
    }


def start_ranks(task: Result, result: Path) -> list["subprocess.Popen[bytes]"]:
    """Start the ranks of a task."""
    settings = result.with_suffix(".task")
    settings.write_text(json.dumps(task))
    common = {
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", RANK_MODULE, str(settings), str(result)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if task["measure"] == "killed" else None,
        )
        for rank in range(RANKS)
    ]


def wait_for_steps(
    result: Path, ranks: Sequence["subprocess.Popen[bytes]"], steps: int
) -> dict[str, float]:
    """Wait until the leader has taken some steps; return when it first did what."""
    moments = result.with_suffix(".rank-0")
    while True:
        lines = moments.read_text().splitlines() if moments.exists() else []
        if sum(line.startswith("stepped") for line in lines) >= steps:
            first: dict[str, float] = {}
            for line in lines:
                name, _, seconds = line.partition(" ")
                first.setdefault(name, float(seconds))
            return first
        if any(rank.poll() is not None for rank in ranks):
            raise SystemExit("a rank ended by itself")
        time.sleep(0.02)


# --- What comes out of it.


def requirements(saves: Result) -> list[Requirement]:
    """Return what must be reached, with what was."""
    blocking = statistics.median(saves["blocking"])
    shares = [seconds / blocking for seconds in saves["stalls"]]
    found = [("median", statistics.median(shares)), ("99th percentile", percentile(shares, 99))]
    own = [share for share, stolen in zip(shares, saves["stolen"], strict=True) if not stolen]
    if own:
        name = f"99th percentile of the {len(own)} in which no other machine took a processor"
        found.append((name, percentile(own, 99)))
    return [
        Requirement(
            what=f"stall of a save in the background, {name}",
            value=value,
            bound=STALL_SHARE,
            unit="of a blocking save",
            is_lower_better=True,
            spread=shares,
        )
        for name, value in found
    ]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that so many per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def print_saves(saves: Result) -> None:
    """Print the seconds of saves and steps, and what they moved."""
    names = {
        "stalls": "save in the background: training stands still",
        "writes": "save in the background: until read back",
        "blocking": "blocking save",
        "deepspeed": "DeepSpeed's own save, no hash, no flush",
        "steps": "step",
        "steps_beside_a_save": "step while a save is written",
    }
    print(f"\n{'seconds':46} {'number':>7} {'median':>8} {'p99':>8} {'largest':>8}")
    for key, name in names.items():
        seconds = saves[key]
        cells = (statistics.median(seconds), percentile(seconds, 99), max(seconds))
        print(f"{name:46} {len(seconds):7}" + "".join(f" {cell:8.3f}" for cell in cells))
    write = saves["bytes"] / statistics.median(saves["writes"]) / 1e6
    print(
        f"\ncheckpoint {saves['bytes'] / 1e6:.0f} MB, of {RANKS} ranks; written, flushed and read "
        f"back at {write:.0f} MB/s; host memory of the leader's copy "
        f"{saves['snapshot_bytes'] / 1e6:.0f} MB"
    )


def print_restart(restart: dict[str, float]) -> None:
    """Print the parts of a restart."""
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in restart.items())
    print(f"kill -9 of a rank to the next step: {sum(restart.values()):.1f} s ({parts})")


if __name__ == "__main__":
    main()
