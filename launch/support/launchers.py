"""Ends a rank when one of its launchers is gone.

There may be several launchers above a rank: `deepspeed` starts a second launcher, which starts the
ranks; `launch.supervise` may have started `deepspeed`. A launcher that is killed by SIGKILL cannot
stop its children, so every rank watches all of its launchers.

A parent process is a launcher when its command line names the rank's program. A person's shell is
not one: a run in the background survives it.

Source: prctl(2) and proc(5).
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.system.processes import ProcessMark, is_running, mark_process, parent_of, words_of
from launch.support.process_tree import stop_with_parent

_POLL_SECONDS = 1.0
_INIT = 1

logger = logging.getLogger(__name__)


def find_launchers(program: str, *, is_launched: bool) -> tuple[ProcessMark, ...]:
    """Return the launchers above this process, its parent first.

    Args:
        program: file that this process runs, as in `sys.argv[0]`.
        is_launched: whether the environment is a launcher's. The parent is then a launcher even if
            its command line names no program, as with Slurm.
    """
    launchers: list[ProcessMark] = []
    process_id = os.getppid()
    while process_id > _INIT:
        starts_us = names_program(words_of(process_id), program)
        if not starts_us and not (is_launched and not launchers):
            break
        mark = mark_process(process_id)
        if mark is None:
            break
        launchers.append(mark)
        process_id = parent_of(process_id)
    return tuple(launchers)


def names_program(arguments: Sequence[str], program: str) -> bool:
    """Return whether a command line starts a program, as a file or as a module."""
    path = Path(program)
    module = f"{path.parent.name}.{path.stem}"
    return any(each == module or Path(each).name == path.name for each in arguments)


def stop_with_launchers(launchers: Sequence[ProcessMark], grace_seconds: float) -> None:
    """Send this process a SIGTERM when one of its launchers is gone, and end it after the grace.

    Before training begins, the SIGTERM ends the process; later it is a request to stop.

    Args:
        launchers: processes to watch; without any, nothing happens.
        grace_seconds: time from the SIGTERM to the end of the process.
    """
    if not launchers:
        return
    stop_with_parent()  # immediate, and independent of this process's threads
    threading.Thread(
        target=_watch, args=(launchers, grace_seconds), name="launchers", daemon=True
    ).start()


def _watch(launchers: Sequence[ProcessMark], grace_seconds: float) -> None:
    while all(is_running(launcher) for launcher in launchers):
        time.sleep(_POLL_SECONDS)
    logger.warning("a launcher of this rank is gone: stopping within %g s", grace_seconds)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    logger.warning("not stopped in %g s (stopping.grace_seconds): ending", grace_seconds)
    os._exit(ExitCode.FAILED)
