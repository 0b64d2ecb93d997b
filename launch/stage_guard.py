"""Run one command so that nothing of it outlives whoever asked for it.

    python -m launch.stage_guard PARENT_PID COMMAND...

A stage is a tree of processes: the deepspeed launcher starts a second launcher, which starts the
ranks. When the main job is killed outright it can tell none of them to stop. So each stage runs
under this guard. Linux sends the guard a SIGTERM when its parent dies, and hands it every orphan
among its descendants; on SIGTERM, and when the command ends, the guard stops all of them.

Source: ours, on prctl(2).
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

GRACE_SECONDS = 15.0

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class _StopRequestedError(Exception):
    """SIGTERM arrived: from the main job, or from Linux because the main job is gone."""


def main(arguments: Sequence[str]) -> int:
    """Run the command to its end.

    Args:
        arguments: process id of the parent, then the command.

    Returns:
        the command's exit code; 128 + the signal's number when a signal ended it.
    """
    parent_id, command = int(arguments[0]), arguments[1:]
    signal.signal(signal.SIGTERM, _request_stop)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_id:  # the parent died before prctl could take note of it
        return 128 + signal.SIGTERM
    try:
        return_code = _wait_and_reap(subprocess.Popen(command, stdin=subprocess.DEVNULL))
    except FileNotFoundError as error:
        print(f"{error.filename}: no such program on PATH", file=sys.stderr)
        return 127
    except _StopRequestedError:
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stopping must not be stopped halfway
        stop_descendants(GRACE_SECONDS)
    return return_code if return_code >= 0 else 128 - return_code


def _wait_and_reap(process: "subprocess.Popen[bytes]") -> int:
    """Return the command's exit code, collecting orphans that end before it.

    An orphan that ended stays visible until it is collected: a launcher that waits for its
    ranks' processes to be gone would wait in vain.
    """
    while True:
        process_id, status = os.wait()
        if process_id == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode


def stop_descendants(grace_seconds: float) -> None:
    """Ask every descendant to stop, and kill those that have not after the grace."""
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        _send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    # A process that was told to stop may have started another one meanwhile.
    for process in {*alive, *psutil.Process().children(recursive=True)}:
        _send(process, signal.SIGKILL)


def _send(process: psutil.Process, signal_number: signal.Signals) -> None:
    try:
        process.send_signal(signal_number)
    except psutil.NoSuchProcess:
        return  # it ended by itself


def _request_stop(signal_number: int, frame: FrameType | None) -> None:
    raise _StopRequestedError


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl option {option} failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
