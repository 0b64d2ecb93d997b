"""A program that stops like a training run, but trains nothing; real launchers start it.

LAUNCHER tests/launch/stoppable_run.py RUN_DIR SECONDS_PER_SAVE
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.parallel.layout.collectives import agree_max, barrier
from ernie_vilg.parallel.layout.groups import start_processes
from ernie_vilg.resilience.stopping import Stopping, StopReason
from ernie_vilg.runs.run_lock import RunLock
from launch.support.environment import is_launched, read_launch
from launch.support.launchers import find_launchers, stop_with_launchers

GRACE_SECONDS = 8.0
STEP_SECONDS = 0.1


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    run_dir, save_seconds = Path(words[0]), float(words[1])
    launchers = find_launchers(sys.argv[0], is_launched=is_launched())
    stop_with_launchers(launchers, GRACE_SECONDS)
    launch = replace(read_launch(), launchers=launchers)
    config = StoppingConfig(grace_seconds=GRACE_SECONDS)
    with (
        RunLock(run_dir, launch) as lock,
        Stopping(config, run_dir, launch, lock=lock) as stopping,
    ):
        start_processes(launch, timeout_seconds=60)
        step = 0
        while True:
            reason = StopReason(agree_max([stopping.code()])[0])
            if reason:
                break
            time.sleep(STEP_SECONDS)
            step += 1
            (run_dir / f"step-rank_{launch.rank}").write_text(str(step))
        return finish(stopping, reason, step, run_dir, launch, save_seconds)


def finish(
    stopping: Stopping,
    reason: StopReason,
    step: int,
    run_dir: Path,
    launch: Launch,
    save_seconds: float,
) -> int:
    checkpoint = run_dir / "earlier"
    is_too_late = agree_max([not stopping.may_save(save_seconds)])[0]
    if not is_too_late:
        time.sleep(save_seconds)
        checkpoint = run_dir / f"checkpoint-rank_{launch.rank}.json"
        checkpoint.write_text(json.dumps({"step": step}))
    barrier()
    code = stopping.leave(reason, step, checkpoint)
    barrier()
    dist.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main())
