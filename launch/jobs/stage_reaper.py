"""Run one command, and stop all of its processes when it or the main job ends.

    python -m launch.jobs.stage_reaper PARENT_PID COMMAND...

A stage is a tree of processes: the deepspeed launcher starts a second launcher, which starts the
ranks. A main job that is killed by SIGKILL cannot stop them, so each stage runs under this process.
Linux sends it a SIGTERM when its parent dies, and makes it the parent of all orphans below it; on
SIGTERM, and when the command ends, it stops all of its descendants.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from launch.support.process_tree import (
    adopt_orphans,
    reap_until_it_ends,
    stop_descendants,
    stop_with_parent,
)

GRACE_SECONDS = 15.0


class _StopRequestedError(Exception):
    """SIGTERM arrived: from the main job, or from Linux because the main job is gone."""


def main(arguments: Sequence[str]) -> int:
    """Run the command to its end.

    Args:
        arguments: process id of the parent, then the command.

    Returns:
        the command's exit code; 128 + the signal's number if a signal ended it.
    """
    parent_id, command = int(arguments[0]), arguments[1:]
    signal.signal(signal.SIGTERM, _request_stop)
    adopt_orphans()
    stop_with_parent()
    if os.getppid() != parent_id:  # the parent died before the call of prctl
        return 128 + signal.SIGTERM
    try:
        return_code = reap_until_it_ends(subprocess.Popen(command, stdin=subprocess.DEVNULL))
    except FileNotFoundError as error:
        print(f"{error.filename}: no such program on PATH", file=sys.stderr)
        return 127
    except _StopRequestedError:
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt this
        stop_descendants(GRACE_SECONDS)
    return return_code if return_code >= 0 else 128 - return_code


def _request_stop(signal_number: int, frame: FrameType | None) -> None:
    raise _StopRequestedError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
