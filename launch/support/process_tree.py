"""Families of processes that end together.

Source: ours, on prctl(2).
"""

import os
import signal
import subprocess

import psutil

from ernie_vilg.system.processes import set_process_attribute, signal_at_parents_end

_PR_SET_CHILD_SUBREAPER = 36


def stop_with_parent() -> None:
    """Have Linux send this process a SIGTERM when the process that started it is gone."""
    signal_at_parents_end(signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    set_process_attribute(_PR_SET_CHILD_SUBREAPER, 1)


def reap_until_it_ends(process: "subprocess.Popen[bytes]") -> int:
    """Return a child's exit code, minus the signal's number if one ended it.

    Collects adopted orphans that end before it: an orphan that ended stays visible until it is
    collected, and a launcher that waits for its ranks' processes to be gone would wait in vain.
    """
    while process.returncode is None:
        _take_note(process, *os.wait())
    return process.returncode


def reap_ended(process: "subprocess.Popen[bytes]") -> None:
    """Collect every child and adopted orphan that has ended; one of them may be `process`."""
    process_id = -1
    while process_id != 0:
        try:
            process_id, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return  # there is no child at all
        _take_note(process, process_id, status)


def _take_note(process: "subprocess.Popen[bytes]", process_id: int, status: int) -> None:
    if process_id == process.pid and process.returncode is None:
        process.returncode = os.waitstatus_to_exitcode(status)


def stop_descendants(grace_seconds: float) -> None:
    """Ask every descendant to stop, and kill those that have not after the grace."""
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        send_signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    # A process that was told to stop may have started another one meanwhile.
    for process in {*alive, *psutil.Process().children(recursive=True)}:
        send_signal(process, signal.SIGKILL)


def send_signal(process: psutil.Process, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it ended by itself
