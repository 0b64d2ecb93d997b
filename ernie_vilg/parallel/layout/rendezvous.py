"""Ranks find each other through a store, and name the ranks that are missing.

Rank 0, or the launcher's agent on its machine, runs a key-value store at an address that every rank
is given. Every rank registers in it. Rank 0 waits for all ranks and can name the missing ones.
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
"""Largest number of ranks that one message names."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class StoreAddress:
    """The address of the ranks' store, as the launcher set it."""

    host: str
    """Name or address of rank 0's machine, MASTER_ADDR."""
    port: int
    """Port of the store, MASTER_PORT."""
    is_kept_by_launcher: bool
    """Whether the launcher runs the store (torchrun does), rather than rank 0."""
    attempt: str
    """Number of times that the launcher has restarted the ranks with the same store."""

    def __str__(self) -> str:
        """Name the variables that set the address."""
        return f"MASTER_ADDR={self.host}, MASTER_PORT={self.port}"


def open_shared_store(launch: Launch, address: StoreAddress, timeout_seconds: float) -> Store:
    """Return the store that all ranks share, once all ranks have registered.

    Args:
        launch: this process's rank.
        address: the store's address.
        timeout_seconds: timeout of the whole rendezvous.

    Raises:
        RendezvousError: the port is taken, the store is not reached, or ranks are missing.
    """
    deadline = time.monotonic() + timeout_seconds
    tcp_store = _connect(launch, address, timeout_seconds)
    store = PrefixStore(f"attempt {address.attempt}", tcp_store)
    try:
        store.set(_arrival(launch.rank), socket.gethostname())
        if launch.is_leader:
            _wait_for_all(store, launch.world_size, deadline, timeout_seconds)
            store.set(_COMPLETE, "")
        else:
            # A little longer than the leader, whose message says more.
            store.wait([_COMPLETE], _time_until(deadline + 1))
    except dist.DistError as error:
        raise RendezvousError(
            f"rank {launch.rank} on {socket.gethostname()} reached rank 0 at {address}, which did "
            f"not start within {_SETTING}={timeout_seconds:g}: see rank 0's message"
        ) from error
    return store


def _connect(launch: Launch, address: StoreAddress, timeout_seconds: float) -> Store:
    keeps_store = launch.is_leader and not address.is_kept_by_launcher

    def connect() -> Store:
        return TCPStore(
            address.host,
            address.port,
            launch.world_size,
            keeps_store,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
            multi_tenant=keeps_store,
        )

    try:
        # A little longer than the store's own timeout, so that most connections end by themselves.
        return _within(timeout_seconds + 1, connect)
    except (dist.DistError, TimeoutError) as error:
        if keeps_store and "EADDRINUSE" in str(error):
            raise RendezvousError(
                f"{address}: another program on {socket.gethostname()} uses this port. Set another "
                "one (deepspeed and torchrun: --master_port), or end that program (ss -ltnp "
                "names it)"
            ) from error
        raise RendezvousError(
            f"rank {launch.rank} on {socket.gethostname()} does not reach rank 0 at {address} "
            f"within {_SETTING}={timeout_seconds:g}. MASTER_ADDR must be a name or address of rank "
            "0's machine that this one reaches, no other program may use the port, and rank 0 must "
            "have started"
        ) from error


def _within(seconds: float, function: Callable[[], Result]) -> Result:
    """Return a function's result, or raise its error.

    Raises:
        TimeoutError: the function took too long. It continues in a thread that ends with the
            process, since a connection to a program that never answers has no timeout.
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
            f"{len(missing)} of {world_size} ranks did not join within "
            f"{_SETTING}={timeout_seconds:g}: {named}. Check on their machines whether they have "
            "started and reach this one, or allow more time"
        ) from error


def _time_until(deadline: float) -> timedelta:
    return timedelta(seconds=max(deadline - time.monotonic(), 0.001))  # 0 is no timeout


def _arrival(rank: int) -> str:
    return f"rank {rank}"
