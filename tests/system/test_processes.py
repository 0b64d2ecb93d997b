"""A process is told from a later one with the same id."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from ernie_vilg.system.processes import (
    catches_signal,
    is_running,
    kill_descendants,
    mark_process,
    parent_of,
    this_machine,
    words_of,
)


def test_this_process() -> None:
    mark = mark_process(os.getpid())

    assert mark is not None
    assert is_running(mark)
    assert not is_running(replace(mark, start_ticks=mark.start_ticks - 1))  # an earlier one
    assert parent_of(os.getpid()) == os.getppid()
    assert words_of(os.getpid())[0].endswith(Path(sys.executable).name)


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = mark_process(process.pid)
        assert mark is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie

        assert not is_running(mark)
        assert mark_process(process.pid) is None
    assert words_of(process.pid) == []
    assert parent_of(process.pid) == 0
    assert not catches_signal(process.pid, signal.SIGTERM)


def test_descendants_are_killed_and_the_process_is_not() -> None:
    program = "import subprocess; subprocess.run(['sh', '-c', 'sleep 60; true'])"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        root = psutil.Process(process.pid)
        while len(root.children(recursive=True)) < 2:  # the shell and its sleep
            assert process.poll() is None
        family = root.children(recursive=True)

        kill_descendants(process.pid)

        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
        assert process.wait(30) == 0  # it ended by itself, after its shell


def test_a_name_with_blanks_and_parentheses(tmp_path: Path) -> None:
    program = tmp_path / "a ) 1 2 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        mark = mark_process(process.pid)
        assert parent_of(process.pid) == os.getpid()
        process.kill()

    assert mark is not None


def test_which_signals_have_handlers() -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        assert catches_signal(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not catches_signal(os.getpid(), signal.SIGUSR2)


def test_a_machine_has_one_name() -> None:
    assert this_machine() == this_machine()
    assert "pid:[" in this_machine()
