"""No rank outlives the launchers that started it.

Between a person and a rank there may be several processes: `deepspeed` starts a second launcher,
which starts the ranks; `launch.supervise` may stand above both. Each of them, killed outright,
leaves the ones below without a word. So every rank watches all of them by itself.

A process above a rank counts as a launcher when the rank's program is a word of its command line.
A person's shell is none: a run in the background survives it.

Source: ours, on prctl(2) and proc(5).
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
        is_launched: whether the environment is that of a launcher, whatever the parent's command
            line says (Slurm's shows no program).
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


def names_program(words: Sequence[str], program: str) -> bool:
    """Say whether a command line starts a program, as a file or as a module."""
    path = Path(program)
    module = f"{path.parent.name}.{path.stem}"
    return any(word == module or Path(word).name == path.name for word in words)


def stop_with_launchers(launchers: Sequence[ProcessMark], grace_seconds: float) -> None:
    """Have this process sent a SIGTERM when one of its launchers is gone, then ended.

    Before training has begun, the SIGTERM ends the process; later it is a request to stop.

    Args:
        launchers: the processes to watch; nothing happens without any.
        grace_seconds: from the SIGTERM to the end of the process, come what may.
    """
    if not launchers:
        return
    stop_with_parent()  # at once, and whatever this process's threads are doing
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
