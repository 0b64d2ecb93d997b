"""The start of a program that trains: environment, launchers, run folder and lock."""

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.run import RunConfig
from ernie_vilg.runs.preflight import check_run_folder
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.tracking.tracker import check_trackers
from launch.support.environment import add_variables, is_launched, prepare_gpu
from launch.support.launchers import find_launchers, stop_with_launchers


def start_run(
    config: RunConfig,
    launch: Launch,
    train: Callable[[Launch, RunLock], int],
    *,
    tensor_parallel_size: int = 1,
) -> int:
    """Check everything that needs no device, then train; return the exit code.

    Args:
        config: settings of the run.
        launch: rank of this process.
        train: loads torch and trains, given this process with its launchers, and the lock.
        tensor_parallel_size: number of ranks that share each layer.

    Raises:
        InputError: a tracker's package is missing, the profile asks for steps or ranks that the run
            does not have, the run folder cannot be written, or another run has it.
    """
    check_trackers(config.tracking)
    config.profile.check_run(config.training.steps, launch.world_size)
    add_variables(config.cluster.environment)
    prepare_gpu(tensor_parallel_size=tensor_parallel_size)
    launchers = find_launchers(sys.argv[0], is_launched=is_launched())
    stop_with_launchers(launchers, config.stopping.grace_seconds)
    launch = replace(launch, launchers=launchers)
    run_dir = Path(config.run_dir)
    if launch.is_leader:
        check_run_folder(run_dir)
    # Refuse a second run in the same folder before torch and DeepSpeed are loaded.
    with RunLock(run_dir, launch) as lock:
        exit_code = train(launch, lock)
        # When a rank ends, deepspeed's launcher sends a SIGTERM to ranks that end a moment later.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return exit_code
