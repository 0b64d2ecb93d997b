"""Inject the faults of large runs into a run, and show which of them it survives.

Command: `python launch/drill.py experiment=quickstart drills=all`.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.outputs import check_output
from ernie_vilg.config.drill import ALL_DRILLS, DrillConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import is_taken, remove, write_json
from ernie_vilg.system.progress import duration
from launch.support.program import program

if TYPE_CHECKING:
    from launch.drills.test_bed import TestBed

REPORT_NAME = "drill.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one drill."""

    name: str
    """Name of the drill."""
    passed: bool
    """Whether all assertions held."""
    seconds: float
    """Seconds of the drill."""
    recovery_seconds: float | None
    """Seconds from the fault to the next step; None if no work was lost."""
    held: str
    """Assertions that held, or the one that did not."""


@program("drill", DrillConfig)
def main(config: DrillConfig) -> None:
    """Run the drills, print the table, exit with 1 if any failed."""
    names = _chosen(config)
    # Imported here so that a bad setting is reported before torch is loaded.
    from launch.drills.catalogue import build_reference
    from launch.drills.test_bed import TestBed, prepare

    folder = clear(config.drill_dir)
    scaled, data = prepare(config, folder / "data")
    source = "your first shards" if data.is_own else "drawn pairs, your shards are not here"
    print(f"{len(names)} drills on {config.num_ranks} ranks, on {source}; logs in {folder}")
    started = time.monotonic()
    reference = build_reference(folder / "reference", scaled, config.num_ranks)
    print(f"undisturbed run: {duration(time.monotonic() - started)}", flush=True)
    bed = TestBed(
        folder=folder,
        config=scaled,
        data=data,
        num_ranks=config.num_ranks,
        reference=reference,
    )
    outcomes = []
    for number, name in enumerate(names, start=1):
        outcomes.append(_drill(bed, name))
        print(f"[{number}/{len(names)}] {_line(outcomes[-1])}", flush=True)
    _report(folder, outcomes, time.monotonic() - started)
    if not all(outcome.passed for outcome in outcomes):
        sys.exit(1)


def _chosen(config: DrillConfig) -> list[str]:
    """Return the names of the drills to run.

    Raises:
        InputError: a name is unknown.
    """
    from launch.drills.catalogue import catalogue

    known = list(catalogue())
    if config.drills == ALL_DRILLS:
        return known
    chosen = config.drills.split("+")
    for name in chosen:
        if name not in known:
            raise InputError(f"drills={name}: choose {ALL_DRILLS}, or among {', '.join(known)}")
    return chosen


def clear(drill_dir: str) -> Path:
    """Remove the files of an earlier drill from a folder; return the folder, without links.

    Raises:
        InputError: the folder holds other files, or cannot be written.
    """
    folder = check_output("drill_dir", drill_dir, is_filled=True)
    if is_taken(folder) and not (folder / "data").is_dir():
        raise InputError(f"drill_dir={folder} holds other files: name an empty or new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        remove(entry)
    return folder


def _drill(bed: "TestBed", name: str) -> Outcome:
    from launch.drills.catalogue import DrillFailedError, catalogue

    started = time.monotonic()
    try:
        finding = catalogue()[name](bed, name)
    except (DrillFailedError, TimeoutError, AssertionError, OSError, KeyError, ValueError) as error:
        return Outcome(
            name=name,
            passed=False,
            seconds=time.monotonic() - started,
            recovery_seconds=None,
            held=f"{type(error).__name__}: {error}",
        )
    return Outcome(
        name=name,
        passed=True,
        seconds=time.monotonic() - started,
        recovery_seconds=finding.recovery_seconds,
        held=finding.held,
    )


def _line(outcome: Outcome) -> str:
    verdict = "pass" if outcome.passed else "FAIL"
    recovery = outcome.recovery_seconds
    seconds = "" if recovery is None else f"{recovery:.1f} s"
    return f"{verdict}  {outcome.name:<30}{outcome.seconds:6.1f} s  {seconds:>8}  {outcome.held}"


def _report(folder: Path, outcomes: list[Outcome], seconds: float) -> None:
    passed = sum(outcome.passed for outcome in outcomes)
    print(f"\n      {'drill':<30}{'took':>8}  {'recovery':>8}  what held")
    for outcome in outcomes:
        print(_line(outcome).splitlines()[0])
    print(f"\n{passed} of {len(outcomes)} drills passed in {duration(seconds)}")
    write_json(
        folder / REPORT_NAME,
        {
            "passed": passed == len(outcomes),
            "seconds": seconds,
            "drills": [asdict(outcome) for outcome in outcomes],
        },
    )


if __name__ == "__main__":
    main()
