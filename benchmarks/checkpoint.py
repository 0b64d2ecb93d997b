"""Cost of saving to training, and cost of a killed rank.

    python benchmarks/checkpoint.py           # about 6 minutes
    python benchmarks/checkpoint.py --quick   # shows that it works

Two ranks on this machine train a model of 13.7 million parameters in bfloat16 under ZeRO 1. They
save in the background, blocking, and with DeepSpeed's own save (which neither hashes nor flushes
nor reads back), in turn, so that other load on the machine hits all three. Then one rank is killed,
and both are started again until their first step.

Prints the tables, writes outputs/benchmarks/checkpoint.json and draws docs/images/checkpoint.png.
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.checkpoint_parts import chart
from benchmarks.support.measurer import Measurer, Result, ask_all, started_ranks
from benchmarks.support.results import (
    OUTPUTS,
    Requirement,
    picture_path,
    print_requirements,
    write_results,
)

RANKS = 2
ROUNDS = 20
"""Number of rounds, each of five saves in the background and one of each other kind."""
STALL_SHARE = 0.2
"""Largest stall of a save in the background, as a fraction of a blocking save."""
STEPS_BEFORE_KILL = 35
RANK_MODULE = "checkpoint_parts.rank"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, two rounds")
    quick = parser.parse_args().quick
    folder = OUTPUTS / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        saves = measure_saves(folder, rounds=2 if quick else ROUNDS, is_small=quick)
        restart = measure_restart(folder, is_small=quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_saves(saves)
    print_restart(restart)
    print_requirements(requirements(saves), quick=quick)
    write_results("checkpoint", {"saves": saves, "restart": restart}, quick=quick)
    stalls = {
        "in the background": saves["stalls"],
        "blocking": saves["blocking"],
        "DeepSpeed's own": saves["deepspeed"],
    }
    limit = STALL_SHARE * statistics.median(saves["blocking"])
    chart.draw(picture_path("checkpoint", quick=quick), stalls, restart, limit=limit)


def measure_saves(folder: Path, *, rounds: int, is_small: bool) -> Result:
    """Return the seconds of all saves and steps."""
    task = {"measure": "saves", "folder": str(folder / "saves"), "rounds": rounds}
    with started_ranks(RANK_MODULE, RANKS) as ranks:
        return ask_all(ranks, {**task, "is_small": is_small})[0]


def measure_restart(folder: Path, *, is_small: bool) -> dict[str, float]:
    """Kill a rank, start all again, and return the seconds until the next step by part."""
    task = {"measure": "killed", "folder": str(folder / "killed"), "is_small": is_small}
    with started_ranks(RANK_MODULE, RANKS) as ranks:
        steps_of(ranks, task, STEPS_BEFORE_KILL)
        killed = time.monotonic()
        ranks[1].kill()
        for rank in ranks:
            rank.wait()
    ended = time.monotonic()
    with started_ranks(RANK_MODULE, RANKS) as ranks:
        moments = steps_of(ranks, task, 1)
        for rank in ranks:
            rank.kill()
    return {
        "the others end": ended - killed,
        "imports": moments["imported"] - ended,
        "engine": moments["built"] - moments["imported"],
        "verify and load": moments["restored"] - moments["built"],
        "first step": moments["stepped"] - moments["restored"],
    }


def steps_of(ranks: Sequence[Measurer], task: Result, steps: int) -> dict[str, float]:
    """Wait for the leader's first steps; return the time of each kind of moment at its first."""
    for rank in ranks:
        rank.send(task)
    first: dict[str, float] = {}
    num_steps = 0
    for moment in ranks[0].answers():
        first.setdefault(moment["name"], moment["at"])
        num_steps += moment["name"] == "stepped"
        if num_steps == steps:
            return first
    raise SystemExit(f"the leader ended by itself: {ranks[0].failure()}")


def requirements(saves: Result) -> list[Requirement]:
    """Return the required figures with their measured values."""
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
    """Return the smallest value that `percent` per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def print_saves(saves: Result) -> None:
    """Print the seconds of saves and steps, and the bytes written."""
    names = {
        "stalls": "save in the background: stall of training",
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
