"""The end of a stage's log, and the memory of all its processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs import stage_process
from launch.jobs.stage_process import PeakMemory, last_lines, memory_of_descendants

_MIB = 2**20


def test_last_lines_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)) + "\n\n")

    assert last_lines(log, 2) == ["line 99998", "line 99999"]


def test_progress_bar_counts_line_by_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"start\n 10%\r 20%\r 30%\xff")

    assert last_lines(log, 1) == [" 30%\ufffd"]


def test_memory_counts_grandchildren() -> None:
    grandchild = "block = bytearray(50 * 2**20); print(flush=True); input()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    before = memory_of_descendants(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the block is allocated
        during = memory_of_descendants(os.getpid())
        process.communicate(b"\n")

    assert during - before > 50 * _MIB


def test_the_peak_stays_when_memory_is_freed_and_costs_nothing_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = "print(flush=True)\nblock = bytearray(50 * 2**20) if input() else 0\nprint(flush=True)"
    child += "\ninput(); del block; print(flush=True); input()"
    readings: list[int] = []

    def counted(process_id: int) -> int:
        readings.append(memory_of_descendants(process_id))
        return readings[-1]

    monkeypatch.setattr(stage_process, "memory_of_descendants", counted)
    # Of a shell's child, because this process may have others, of earlier tests.
    with subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        memory = PeakMemory(process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        peaks = []
        for word in ("allocate", "free", "end"):
            process.stdout.readline()
            peaks.append(memory.sample())
            process.stdin.write(word + "\n")
            process.stdin.flush()

    assert peaks[1] - peaks[0] > 50 * _MIB
    assert peaks[2] == peaks[1]
    assert readings == peaks[:2]


def test_process_that_is_gone_has_no_memory() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()

    assert memory_of_descendants(done.pid) == 0
