"""Kills a writer before each of its durable operations, and starts it again."""

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ernie_vilg.config.launch import Launch

OPERATIONS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")

Action = Callable[[Path], None]


def kill_everywhere(
    _: Launch, folder: Path, prepare: Action, write: Action, every: int
) -> tuple[int, list[str]]:
    """Kill a writer before its n-th operation for every n; run by `tests.distributed`.

    Args:
        folder: an empty one.
        prepare: makes what the writer finds.
        write: the writer; gets a copy of what `prepare` made.
        every: 1: n is 1, 2, 3, ...; 4: 1, 5, 9, ...

    Returns:
        the number of operations, and what differed from an undisturbed run, for people.
    """
    start, whole = folder / "start", folder / "whole"
    start.mkdir()
    assert _forked(prepare, start) is not None
    shutil.copytree(start, whole)
    count = _forked(write, whole)
    assert count, "it failed, or did nothing"
    expected, found = content_of(whole), []
    for number in range(1, count + 1, every):
        killed = folder / "killed"
        shutil.copytree(start, killed)
        if _forked(write, killed, kill_at=number) is not None:
            found.append(f"{number}: was not killed")
        elif _forked(write, killed) is None:
            found.append(f"{number}: did not start again")
        else:
            found += [f"{number}: {name}" for name in _differing(content_of(killed), expected)]
        shutil.rmtree(killed)
    return count, found


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file, and an empty one for each folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def _differing(actual: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    names = sorted({*actual, *expected})
    return [name for name in names if actual.get(name) != expected.get(name)]


def _forked(action: Action, folder: Path, kill_at: int | None = None) -> int | None:
    """Run an action in a fork; return its durable operations, None if it failed or was killed."""
    reader, writer = os.pipe()
    process_id = os.fork()
    if process_id == 0:
        try:
            counted = _count_operations(kill_at)
            action(folder)
            os.write(writer, str(len(counted)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(process_id, 0)
    return int(text) if text else None


def _count_operations(kill_at: int | None) -> list[str]:
    done: list[str] = []

    def counting(name: str, operation: Any) -> Any:
        def count(*arguments: Any, **named: Any) -> Any:
            done.append(name)
            if len(done) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return count

    for name in OPERATIONS:
        setattr(os, name, counting(name, getattr(os, name)))
    return done
