"""Signs of life: what each rank is doing, where the others can read it when they wait for it.

Every rank leaves a line in the store through which the ranks have met, again and again, from a
thread of its own. A rank that hangs in a collective still does; one that is stopped, gone, or stuck
in a call that keeps Python's lock does not. Nobody reads until something takes too long.

The thread uses a connection of its own and calls no collective. The store is kept by the leader,
or by the launcher: where it does not answer, that is a finding too.

Source: ours, on torch.distributed's stores.
"""

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any

import psutil
import torch.distributed as dist

from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.layout.collectives import gather_everywhere
from ernie_vilg.parallel.layout.coordinates import coordinates_of
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.storage.json_files import parse_json
from ernie_vilg.system.processes import ProcessMark, is_running, mark_process, this_machine

_STORE_TIMEOUT = timedelta(seconds=10)
_JOIN_SECONDS = 5.0
_STATES = {
    psutil.STATUS_STOPPED: "its process is stopped by a signal",
    psutil.STATUS_TRACING_STOP: "its process is stopped by a debugger",
    psutil.STATUS_DISK_SLEEP: "its process waits for a disk, a network file system or a driver",
    psutil.STATUS_RUNNING: "its process runs, in a call that keeps Python's lock",
    psutil.STATUS_SLEEPING: "its process waits, in a call that keeps Python's lock",
}
"""What a process does that gives no sign of life."""

_BEAT = "a sign of life"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Member:
    """Who a rank is; does not change."""

    rank: int
    """Among all."""
    place: str
    """Coordinates in words."""
    host: str
    """Name of its machine."""
    machine: str
    """Equal for processes that see each other's ids."""
    process: ProcessMark
    """Which process of its machine."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.place} on {self.host}, pid {self.process.process_id})"


@dataclass(frozen=True, kw_only=True)
class CollectiveNote:
    """The collective that a rank is in."""

    words: str
    """Name, count and who takes part."""
    key: str
    """Names those who take part."""
    members: list[int]
    """Ranks that take part."""
    number: int
    """Counts those with this key, from 1."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One sign of life."""

    number: int = 0
    """Counts them."""
    phase: str
    """What the rank is doing."""
    step: int
    """Steps taken."""
    seconds: float
    """For how long it has been doing so."""
    reading: str = ""
    """What its data workers do."""
    collective: CollectiveNote | None = None
    """What it waits in, if it does."""
    last: str = ""
    """The collective started last, in words."""
    counts: dict[str, int] = field(default_factory=dict)
    """Collectives started, by key."""


def meet(groups: Groups) -> list[Member]:
    """Return who every rank is; all ranks must call."""
    process = mark_process(os.getpid())
    assert process is not None, "it runs this"
    return gather_everywhere(
        Member(
            rank=groups.rank,
            place=str(coordinates_of(groups.rank, groups)),
            host=socket.gethostname(),
            machine=this_machine(),
            process=process,
        )
    )


def meeting_store() -> Any:
    """Return a connection of our own to the store through which the ranks have met."""
    world = dist.group.WORLD
    assert world is not None, "the ranks have met"
    own: Any = world.get_group_store()
    store = dist.PrefixStore("signs of life", own.clone())  # type: ignore[attr-defined]
    store.set_timeout(_STORE_TIMEOUT)
    return store


class Heartbeats:
    """Leaves this rank's signs of life while it is open."""

    def __init__(
        self, rank: int, every_seconds: float, take: Callable[[], Beat], store: Any
    ) -> None:
        """Leave none yet.

        Args:
            rank: this one.
            every_seconds: between two.
            take: says what this rank is doing; called in a thread.
            store: where they are left.
        """
        self._rank = rank
        self._every_seconds = every_seconds
        self._take = take
        self._store = store
        self._number = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)

    def __enter__(self) -> "Heartbeats":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join(_JOIN_SECONDS)  # it may wait for a store that is gone

    def read(self, ranks: list[int], timeout_seconds: float) -> dict[int, Beat] | None:
        """Return the last sign of each rank that has left one; None if the store is silent."""
        found: list[dict[int, Beat]] = []
        # In a thread of its own: a store whose process is stopped answers nothing, for ever.
        thread = threading.Thread(target=self._read, args=(ranks, found), daemon=True)
        thread.start()
        thread.join(timeout_seconds)
        return found[0] if found else None

    def _read(self, ranks: list[int], found: list[dict[int, Beat]]) -> None:
        try:
            present = [rank for rank in ranks if self._store.check([str(rank)])]
            texts = self._store.multi_get([str(rank) for rank in present])
            beats = [from_json(parse_json(bytes(text), _BEAT), Beat, _BEAT) for text in texts]
        except InputError as error:
            logger.warning("signs of life cannot be read: %s", error)
            return
        except (RuntimeError, OSError) as error:
            logger.debug("no signs of life to read: %s", error)
            return
        found.append(dict(zip(present, beats, strict=True)))

    def _run(self) -> None:
        while True:
            self._number += 1
            beat = self._take()
            values = {**asdict(beat), "number": self._number}
            try:
                self._store.set(str(self._rank), json.dumps(values))
            except (RuntimeError, OSError) as error:
                # Whoever kept the store is gone, or this run ends: the others will notice too.
                logger.debug("no sign of life left: %s", error)
            if self._is_over.wait(self._every_seconds):
                return


def process_state(member: Member) -> str:
    """Say what the kernel knows of a process of this machine."""
    if not is_running(member.process):
        return "its process is gone"
    try:
        status = psutil.Process(member.process.process_id).status()
    except psutil.NoSuchProcess:
        return "its process is gone"
    return _STATES.get(status, f"its process is {status}")
