"""Inject random faults into a run for many minutes, and compare it with an undisturbed run.

Command: `python launch/soak.py experiment=quickstart minutes=20`.
"""

import sys
import time
from dataclasses import replace

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.soak import SoakConfig
from ernie_vilg.storage.files import write_json
from ernie_vilg.system.progress import duration
from launch.drill import clear
from launch.support.program import program

REPORT_NAME = "soak.json"

_STEPS = 1_000_000
_SAVE_EVERY = 20
_LOADER_TIMEOUT_SECONDS = 10
_LONGEST_SECONDS = 2 * 3600.0


@program("soak", SoakConfig)
def main(config: SoakConfig) -> None:
    """Soak the run and print the result; exit with 1 if an assertion failed."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from launch.drills.runs import DrilledRun
    from launch.drills.soaking import Soak, nan_fault, result_of, stop_fault
    from launch.drills.test_bed import prepare

    folder = clear(config.drill_dir)
    scaled, data = prepare(config, folder / "data")
    scaled = _endless(scaled)
    faulted, undisturbed = (
        DrilledRun(
            folder=folder / name,
            config=replace(scaled, run_dir=str(folder / name / "run")),
            num_ranks=config.num_ranks,
        )
        for name in ("faulted", "undisturbed")
    )
    print(f"injecting faults for {duration(60 * config.minutes)}; logs in {folder}", flush=True)
    started = time.monotonic()
    soak = Soak(faulted, data.token_shards, config.soak_seed)
    soak.inject_for(60 * config.minutes)
    print(f"training an undisturbed run to step {faulted.newest_step()}", flush=True)
    undisturbed.launch(
        nan_fault(), stop_fault(faulted.newest_step()), longest_seconds=_LONGEST_SECONDS
    )
    result = result_of(soak, undisturbed)
    for line in result["lines"]:
        print(line)
    write_json(folder / REPORT_NAME, {**result, "seconds": time.monotonic() - started})
    if not result["passed"]:
        sys.exit(1)


def _endless(config: PretrainConfig) -> PretrainConfig:
    """Return the settings of a run that only a fault or a signal ends."""
    loader = replace(config.data.loader, num_workers=1, timeout_seconds=_LOADER_TIMEOUT_SECONDS)
    return replace(
        config,
        training=replace(config.training, steps=_STEPS, log_every=1),  # a time of each step
        checkpoint=replace(config.checkpoint, every=_SAVE_EVERY),
        samples=replace(config.samples, every=0),
        data=replace(config.data, loader=loader),
    )


if __name__ == "__main__":
    main()
