"""A worker of the fuzzer: runs cases of one target, each within its time and memory."""

import contextlib
import logging
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import torch

from tests.fuzz.target import Files, Outcome, Target

SECONDS = 10.0
"""Most seconds of one reading."""
GROWTH_BYTES = 200 << 20
"""Most bytes that one reading may add to the worker's memory."""
_LIMIT_BYTES = 3 << 30
_OURS = ("ernie_vilg", "data_pipelines", "launch")


class Hang(BaseException):
    """A reading that takes too long; no handler of ordinary errors may catch it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of one case."""

    index: int
    """The case's number."""
    outcome: Outcome | None
    """None for a finding."""
    cause: str = ""
    """A finding's kind and place."""
    detail: str = ""
    """A finding in words, for people."""
    seconds: float = 0.0
    """Taken."""
    growth: int = 0
    """The worker's peak memory, in bytes."""


def work(target: Target, seed: int, first: int, count: int, seconds: float, out: BinaryIO) -> None:
    """Run cases and write what begins and what ends to a pipe; the process is this one's own.

    Args:
        target: what is read.
        seed: of all cases.
        first: index of the first case.
        count: cases at most.
        seconds: after which no further case begins.
        out: gets a pickle of each case's index, then of its `Result`.
    """
    _prepare(target)
    # Memory disks make files cheap to place; the reader does not see the difference.
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_fast_folder()) as folder:
        tempfile.tempdir = folder
        target.start()
        # What the first reading of all imports and keeps is no case's.
        outcome = target.run(Path(folder, "w"), dict(target.originals))
        if outcome is not Outcome.VALID:
            raise RuntimeError(f"{target.name}: the undamaged files are {outcome}")
        end = time.monotonic() + seconds
        for index in range(first, first + count):
            if time.monotonic() > end:
                break
            pickle.dump(index, out)
            out.flush()
            pickle.dump(run_case(target, target.case(seed, index), index, Path(folder, "w")), out)
            out.flush()


def run_case(target: Target, files: Files, index: int, folder: Path) -> Result:
    """Run one case."""
    started, before = time.monotonic(), _reset_peak()
    outcome, cause, detail = None, "", ""
    try:
        with _limit(SECONDS):
            outcome = target.run(folder, files)
    except BaseException as error:
        cause, detail = _describe(error)
    growth = max(_peak() - before, 0)
    if outcome is not None and growth > GROWTH_BYTES:
        outcome, cause = None, f"memory: over {GROWTH_BYTES >> 20} MB more"
        detail = f"{growth >> 20} MB"
    return Result(
        index=index,
        outcome=outcome,
        cause=cause,
        detail=detail,
        seconds=time.monotonic() - started,
        growth=growth,
    )


def _prepare(target: Target) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(silent, descriptor)
    # So much more than a reading may take, and so much less than the machine has.
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + _LIMIT_BYTES,) * 2)


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise Hang(f"over {seconds:g} s")

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _describe(error: BaseException) -> tuple[str, str]:
    """Return the kind and place of an error, and its last lines."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in _OURS)
              and "site-packages" not in frame.filename]  # fmt: skip
    where = "tests"
    if places:
        *_, frame = places
        root = Path(__file__).parents[2]
        where = f"{Path(frame.filename).relative_to(root)}:{frame.lineno} {frame.name}"
    text = "".join(traceback.format_exception_only(error))[:500].strip()
    kind = type(error).__name__
    if kind == "WrongReading":
        kind += f": {str(error).partition(':')[0][:40]}"
    return f"{kind} at {where}", text


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _data_bytes() -> int:
    return _status("VmData")


def _peak() -> int:
    return _status("VmHWM")


def _reset_peak() -> int:
    """Let the peak be counted from now on where Linux lets us; return the memory of now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def fork(target: Target, seed: int, first: int, count: int, seconds: float) -> tuple[int, BinaryIO]:
    """Start a worker; return its process id and the end of its pipe that is read."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    process_id = os.fork()
    if process_id:
        os.close(write_end)
        return process_id, os.fdopen(read_end, "rb")
    code = 1
    try:
        os.close(read_end)
        os.setpgid(0, 0)
        with os.fdopen(write_end, "wb") as out:
            try:
                work(target, seed, first, count, seconds, out)
                code = 0
            except BaseException:
                pickle.dump(traceback.format_exc(), out)
    finally:
        os._exit(code)
