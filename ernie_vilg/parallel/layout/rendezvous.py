"""How ranks find each other, and what is said when they do not.

Rank 0, or the launcher's agent on its machine, keeps a store of keys and values at an address that
every rank was given. Every rank writes down that it has come; rank 0 waits for all of them and can
name those that have not.

Source: ours, on torch.distributed's TCPStore.
"""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ernie_vilg.config.launch import Launch, RendezvousError

_SETTING = "cluster.rendezvous_timeout_seconds"
_COMPLETE = "complete"
_NAMED = 8
"""Ranks that one message names at most."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class MeetingPlace:
    """Where the ranks meet, as the launcher says."""

    host: str
    """MASTER_ADDR: name or address of rank 0's machine."""
    port: int
    """MASTER_PORT."""
    is_kept_by_launcher: bool
    """Whether the launcher keeps the store (torchrun does), rather than rank 0."""
    attempt: str
    """Number of times that the launcher has started the ranks anew around the same store."""

    def __str__(self) -> str:
        """Name the place by the variables that set it."""
        return f"MASTER_ADDR={self.host}, MASTER_PORT={self.port}"


def meet(launch: Launch, place: MeetingPlace, timeout_seconds: float) -> Store:
    """Return the store that all ranks share, once all are there.

    Args:
        launch: this process's place among the others.
        place: where to meet.
        timeout_seconds: for all of it.

    Raises:
        RendezvousError: the place is taken or not reached, or ranks are missing.
    """
    deadline = time.monotonic() + timeout_seconds
    tcp_store = _open_store(launch, place, timeout_seconds)
    store = PrefixStore(f"attempt {place.attempt}", tcp_store)
    try:
        store.set(_arrival(launch.rank), socket.gethostname())
        if launch.is_leader:
            _wait_for_all(store, launch.world_size, deadline, timeout_seconds)
            store.set(_COMPLETE, "")
        else:
            # A little longer than the leader, who knows more of what is wrong.
            store.wait([_COMPLETE], _time_until(deadline + 1))
    except dist.DistError as error:
        raise RendezvousError(
            f"rank {launch.rank} on {socket.gethostname()} has met rank 0 at {place}, which then "
            f"did not begin within {_SETTING}={timeout_seconds:g}: see what it says"
        ) from error
    return store


def _open_store(launch: Launch, place: MeetingPlace, timeout_seconds: float) -> Store:
    keeps_store = launch.is_leader and not place.is_kept_by_launcher

    def connect() -> Store:
        return TCPStore(
            place.host,
            place.port,
            launch.world_size,
            keeps_store,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
            multi_tenant=keeps_store,
        )

    try:
        # A little longer than the store's own limit: most connections then end by themselves.
        return _within(timeout_seconds + 1, connect)
    except (dist.DistError, TimeoutError) as error:
        if keeps_store and "EADDRINUSE" in str(error):
            raise RendezvousError(
                f"{place}: another program of {socket.gethostname()} has this port. Name another "
                "one (deepspeed and torchrun: --master_port), or end that program (ss -ltnp "
                "names it)"
            ) from error
        raise RendezvousError(
            f"rank {launch.rank} on {socket.gethostname()} does not reach rank 0 at {place} within "
            f"{_SETTING}={timeout_seconds:g}. MASTER_ADDR must be a name or address of rank 0's "
            "machine that this one reaches, no other program may have the port, and rank 0 must "
            "have started"
        ) from error


def _within(seconds: float, function: Callable[[], Result]) -> Result:
    """Return what a function returns, or raise what it raises.

    Raises:
        TimeoutError: it took too long. It then goes on, in a thread that ends with the process:
            a connection to a program that never answers knows no time-out.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="rendezvous", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _wait_for_all(store: Store, world_size: int, deadline: float, timeout_seconds: float) -> None:
    keys = [_arrival(rank) for rank in range(world_size)]
    try:
        store.wait(keys, _time_until(deadline))
    except dist.DistError as error:
        missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise RendezvousError(
            f"{len(missing)} of {world_size} ranks did not come within "
            f"{_SETTING}={timeout_seconds:g}: {named}. See on their machines whether they have "
            "started and reach this one, or allow more time"
        ) from error


def _time_until(deadline: float) -> timedelta:
    return timedelta(seconds=max(deadline - time.monotonic(), 0.001))  # 0 would mean for ever


def _arrival(rank: int) -> str:
    return f"rank {rank}"
