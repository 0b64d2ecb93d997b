"""A failed run is restarted, a stopped one is not, and no process is left."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.support.program import CONF_FOLDER
from launch.support.supervisor import Ending, newest_step

ROOT = CONF_FOLDER.parent

# A stand-in for a launcher with its ranks: each start performs the next of its actions.
_RUN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

run_dir, deeds = Path(sys.argv[1]), sys.argv[2:]
starts = run_dir / "starts"
number = len(starts.read_text().split()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(f"{os.getpid()} ")
deed, _, detail = deeds[number].partition(":")
if deed == "checkpoint":
    (run_dir / "checkpoints" / f"step_{number:08d}").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "stopped":
    marker = {"reason": detail, "by_person": detail == "stop_file", "requeued": False}
    (run_dir / "stopped.json").write_text(json.dumps(marker))
    sys.exit(1)  # as torchrun does
if deed == "refused":
    Path(os.environ["ENDING_FILE"]).write_text("2\\npretrain: steps=0: must be at least 1\\n")
    sys.exit(1)  # as torchrun does
if deed == "orphan":
    orphan = subprocess.Popen(["sleep", "60"])
    (run_dir / "orphan").write_text(str(orphan.pid))
    sys.exit(1)
if deed == "wait":
    rank = [sys.executable, "-c", "import signal, sys, time; from pathlib import Path\\n"
        "def stop(number, frame): Path(sys.argv[1], 'stopped').touch(); sys.exit(75)\\n"
        "signal.signal(getattr(signal, sys.argv[2]), stop)\\n"
        "Path(sys.argv[1], 'waiting').touch(); time.sleep(60)"]
    sys.exit(subprocess.call([*rank, run_dir, detail]))
sys.exit(int(detail))
"""


def supervisor(run_dir: Path, *deeds: str, max_failures: int = 2) -> list[str]:
    program = run_dir / "run.py"
    program.write_text(_RUN)
    policy = ["--pause-seconds", "0.05", "--max-failures", str(max_failures)]
    command = [sys.executable, str(program), str(run_dir), *deeds]
    module = [sys.executable, "-m", "launch.supervise", "--run-dir", str(run_dir)]
    return [*module, *policy, "--", *command]


def supervise(run_dir: Path, *deeds: str) -> tuple[int, int, str]:
    """Return the exit code, the number of starts, and the output."""
    done = subprocess.run(
        supervisor(run_dir, *deeds), cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, len((run_dir / "starts").read_text().split()), done.stderr


def test_a_run_that_gets_on_is_started_until_it_is_done(tmp_path: Path) -> None:
    deeds = ("checkpoint", "exit:1", "checkpoint", "stopped:terminated", "exit:0")

    assert supervise(tmp_path, *deeds)[:2] == (0, 5)
    assert newest_step(tmp_path) == 2


def test_a_run_that_does_not_get_on_is_given_up(tmp_path: Path) -> None:
    code, starts, said = supervise(tmp_path, "exit:1", "exit:7", "exit:0")

    assert (code, starts) == (7, 2)
    assert "2 starts in a row made no new checkpoint" in said


def test_a_run_whose_settings_are_refused_is_not_started_again(tmp_path: Path) -> None:
    """The launcher's code is 1, as after any failure; the batch script reads the same file."""
    assert supervise(tmp_path, "refused", "exit:0")[:2] == (2, 1)


def test_a_run_that_a_person_stopped_stays_stopped(tmp_path: Path) -> None:
    assert supervise(tmp_path, "checkpoint", "stopped:stop_file")[:2] == (75, 2)


def test_what_a_start_leaves_running_is_ended_before_the_next(tmp_path: Path) -> None:
    assert supervise(tmp_path, "orphan", "exit:0")[:2] == (0, 2)
    assert not psutil.pid_exists(int((tmp_path / "orphan").read_text()))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 75, id="SIGTERM ends it"),
        pytest.param(signal.SIGUSR1, 0, id="after SIGUSR1 it is started again"),
    ],
)
def test_signals_reach_those_that_wait_for_them(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with subprocess.Popen(
        supervisor(tmp_path, f"wait:{number.name}", "exit:0"), cwd=ROOT
    ) as process:
        _wait_for(tmp_path / "waiting")
        process.send_signal(number)

        assert process.wait(60) == code
    assert (tmp_path / "stopped").exists()


def test_killed_outright_it_takes_the_run_with_it(tmp_path: Path) -> None:
    with subprocess.Popen(supervisor(tmp_path, "wait:SIGTERM", "exit:0"), cwd=ROOT) as process:
        _wait_for(tmp_path / "waiting")
        (run,) = psutil.Process(process.pid).children()
        process.kill()

        assert psutil.wait_procs([run], timeout=10)[1] == []


def ending(return_code: int, reason: str | None = None, **changes: Any) -> Ending:
    is_by_person = reason in ("stop_file", "interrupted")
    marker = {"reason": reason, "by_person": is_by_person, "requeued": False}
    values: dict[str, Any] = {"signal_number": None, "is_locked": False, **changes}
    return Ending(return_code=return_code, marker=marker if reason else None, **values)


@pytest.mark.parametrize(
    ("how", "is_final", "exit_code"),
    [
        pytest.param(ending(0), True, 0, id="done"),
        pytest.param(ending(0, is_locked=True), False, 1, id="a killed launcher of deepspeed"),
        pytest.param(ending(0, "launcher_gone"), False, 75, id="the same, its ranks saved"),
        pytest.param(ending(2), True, 2, id="a wrong setting"),
        pytest.param(ending(1), False, 1, id="an error"),
        pytest.param(ending(-9), False, 137, id="killed"),
        pytest.param(ending(75, "terminated"), False, 75, id="its ranks got a SIGTERM"),
        pytest.param(ending(1, "launcher_gone"), False, 75, id="a launcher was killed"),
        pytest.param(ending(1, "stop_file"), True, 75, id="STOP under torchrun"),
        pytest.param(ending(75, "interrupted"), True, 75, id="Ctrl-C"),
        pytest.param(ending(75, "time_limit"), True, 75, id="its time is over"),
        pytest.param(ending(75, "terminated", signal_number=15), True, 75, id="told to end"),
        pytest.param(ending(75, "user_signal", signal_number=10), False, 75, id="told to save"),
    ],
)
def test_which_endings_are_final(how: Ending, is_final: bool, exit_code: int) -> None:
    assert (how.is_final, how.exit_code) == (is_final, exit_code)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
