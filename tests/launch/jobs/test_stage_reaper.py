"""No process outlives its stage, and ended orphans are reaped."""

import os
import subprocess
import sys

from launch.support.program import CONF_FOLDER

# A shell leaves an orphan; the command then waits until it is gone, as the deepspeed launcher waits
# for the processes of a stopped rank.
_WAITS_FOR_AN_ORPHAN = """
import subprocess, sys, time
import psutil
orphan = int(subprocess.run(
    ["sh", "-c", "sleep 0.2 >/dev/null & echo $!"], capture_output=True, text=True
).stdout)
deadline = time.monotonic() + 5
while psutil.pid_exists(orphan) and time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(psutil.pid_exists(orphan))
"""


def guarded(*command: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "launch.jobs.stage_reaper", str(os.getpid()), *command],
        cwd=CONF_FOLDER.parent,
        check=False,
    ).returncode


def test_an_orphan_that_ended_is_gone() -> None:
    assert guarded(sys.executable, "-c", _WAITS_FOR_AN_ORPHAN) == 0


def test_exit_codes_come_through() -> None:
    assert guarded("sh", "-c", "exit 7") == 7
    assert guarded("sh", "-c", "kill -9 $$") == 128 + 9
