"""Process trees that end together.

Source: prctl(2).
"""

import os
import signal
import subprocess

import psutil

from ernie_vilg.system.processes import set_process_attribute, signal_at_parents_end

_PR_SET_CHILD_SUBREAPER = 36


def stop_with_parent() -> None:
    """Ask Linux to send this process a SIGTERM when its parent is gone."""
    signal_at_parents_end(signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of all orphaned descendants."""
    set_process_attribute(_PR_SET_CHILD_SUBREAPER, 1)


def reap_until_it_ends(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a child; return its exit code, or minus the number of the signal that ended it.

    Adopted orphans that end meanwhile are reaped: until then an ended orphan stays visible, and a
    launcher that waits for its ranks to be gone would wait forever.
    """
    while process.returncode is None:
        _set_return_code(process, *os.wait())
    return process.returncode


def reap_ended(process: "subprocess.Popen[bytes]") -> None:
    """Reap all ended children and adopted orphans; one of them may be `process`."""
    process_id = -1
    while process_id != 0:
        try:
            process_id, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return  # no child is left
        _set_return_code(process, process_id, status)


def _set_return_code(process: "subprocess.Popen[bytes]", process_id: int, status: int) -> None:
    if process_id == process.pid and process.returncode is None:
        process.returncode = os.waitstatus_to_exitcode(status)


def stop_descendants(grace_seconds: float) -> None:
    """Ask all descendants to stop, and kill those that still run after the grace."""
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        send_signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    # A stopping process may have started another one meanwhile.
    for process in {*alive, *psutil.Process().children(recursive=True)}:
        send_signal(process, signal.SIGKILL)


def send_signal(process: psutil.Process, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it ended by itself
