"""Strike a run at random for many minutes, and hold it against one that nothing happened to.

    python launch/soak.py experiment=quickstart minutes=20

Source: ours.
"""

import sys
import time
from dataclasses import replace

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
    """Soak the run; print what held; exit with 1 if anything did not."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from launch.drills.grounds import prepare
    from launch.drills.runs import DrilledRun
    from launch.drills.soaking import Soak, nan_fault, stop_fault, verdict

    folder = clear(config.drill_dir)
    scaled, data = prepare(config, folder / "data")
    scaled = replace(
        scaled,
        training=replace(scaled.training, steps=_STEPS, log_every=10),
        checkpoint=replace(scaled.checkpoint, every=_SAVE_EVERY),
        samples=replace(scaled.samples, every=0),
        data=replace(
            scaled.data,
            loader=replace(
                scaled.data.loader, num_workers=1, timeout_seconds=_LOADER_TIMEOUT_SECONDS
            ),
        ),
    )
    struck, undisturbed = (
        DrilledRun(
            folder=folder / name,
            config=replace(scaled, run_dir=str(folder / name / "run")),
            num_ranks=config.num_ranks,
        )
        for name in ("struck", "undisturbed")
    )
    print(f"faults strike for {duration(60 * config.minutes)}; logs in {folder}", flush=True)
    started = time.monotonic()
    soak = Soak(struck, data.token_shards, config.soak_seed)
    soak.strike_for(60 * config.minutes)
    print(f"an undisturbed run trains to step {struck.newest_step()} now", flush=True)
    undisturbed.launch(
        nan_fault(), stop_fault(struck.newest_step()), longest_seconds=_LONGEST_SECONDS
    )
    result = verdict(soak, undisturbed)
    for line in result["lines"]:
        print(line)
    write_json(folder / REPORT_NAME, {**result, "seconds": time.monotonic() - started})
    if not result["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
