"""Heartbeats: each rank's phase and collective, readable by the ranks that wait for it.

A thread of every rank writes its heartbeat into the store through which the ranks have met. A rank
that hangs in a collective still writes; a rank that is stopped, gone, or in a call that holds the
GIL does not. Heartbeats are read only when a timeout has passed.

The thread has a connection of its own and calls no collective. The leader or the launcher keeps the
store. If it does not answer, calls on it may block for ever: so neither writing nor reading
happens in the watchdog's thread.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.layout.device_threads import device_thread
from ernie_vilg.storage.json_files import parse_json

_STORE_TIMEOUT = timedelta(seconds=10)
_JOIN_SECONDS = 5.0
_BEAT = "a heartbeat"
_NO_GPU = torch.device("cpu")

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class CollectiveNote:
    """The collective that a rank is in."""

    words: str
    """Name, number and members, for people."""
    key: str
    """Name of its group, the same on all members."""
    members: list[int]
    """Ranks that take part."""
    number: int
    """Number of the call within its group, from 1."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One heartbeat."""

    number: int = 0
    """Number of the heartbeat of its rank, from 1."""
    phase: str
    """Phase of the rank."""
    step: int
    """Step being made, from 1; between two steps, the last one made."""
    seconds: float
    """Seconds since the phase began."""
    reading: str = ""
    """Shards that its data workers wait for."""
    collective: CollectiveNote | None = None
    """Collective that it waits in."""
    last: str = ""
    """Collective started last, in words."""
    counts: dict[str, int] = field(default_factory=dict)
    """Collectives started so far, by group."""


def connect_to_store() -> Any:
    """Return a new connection to the store through which the ranks have met."""
    world = dist.group.WORLD
    assert world is not None, "the ranks have met"
    own: Any = world.get_group_store()
    store = dist.PrefixStore("heartbeats", own.clone())  # type: ignore[attr-defined]
    store.set_timeout(_STORE_TIMEOUT)
    return store


class Heartbeats:
    """Writes this rank's heartbeats while it is open, and reads those of all ranks."""

    def __init__(
        self,
        rank: int,
        every_seconds: float,
        take: Callable[[], Beat],
        store: Any,
        device: torch.device,
    ) -> None:
        """Prepare; entering the block starts the thread.

        Args:
            rank: this rank.
            every_seconds: interval between two heartbeats.
            take: returns this rank's heartbeat; called in the thread.
            store: holds the heartbeats.
            device: this rank's device, of which `take` may ask what it has finished.
        """
        self._rank = rank
        self._every_seconds = every_seconds
        self._take = take
        self._store = store
        self._is_over = threading.Event()
        self._thread = device_thread(self._run, device, name="heartbeats")

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

    def read(self, ranks: Sequence[int], timeout_seconds: float) -> dict[int, Beat] | None:
        """Return the last heartbeat of each rank that has any; None if the store is silent."""
        return call_within(timeout_seconds, lambda: self._read(ranks))

    def _read(self, ranks: Sequence[int]) -> dict[int, Beat] | None:
        try:
            present = [rank for rank in ranks if self._store.check([str(rank)])]
            texts = self._store.multi_get([str(rank) for rank in present])
            beats = [from_json(parse_json(bytes(text), _BEAT), Beat, _BEAT) for text in texts]
        except InputError as error:
            logger.warning("heartbeats cannot be read: %s", error)
            return None
        except (RuntimeError, OSError) as error:
            logger.debug("no heartbeats to read: %s", error)
            return None
        return dict(zip(present, beats, strict=True))

    def _run(self) -> None:
        number = 0
        while True:
            number += 1
            beat = replace(self._take(), number=number)
            try:
                self._store.set(str(self._rank), json.dumps(asdict(beat)))
            except (RuntimeError, OSError) as error:
                # The store's process is gone, or this run ends: the other ranks notice it too.
                logger.debug("heartbeat not written: %s", error)
            if self._is_over.wait(self._every_seconds):
                return


def call_within(
    seconds: float, call: Callable[[], Result], device: torch.device = _NO_GPU
) -> Result | None:
    """Return the result of a call, or None if it takes longer; it then goes on in its thread.

    Args:
        seconds: longest wait.
        call: function to call.
        device: device that the call uses.
    """
    results: list[Result] = []
    thread = device_thread(lambda: results.append(call()), device, name="within a time")
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
