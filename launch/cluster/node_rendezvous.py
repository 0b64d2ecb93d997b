"""Checks that all nodes reach the port of the ranks' rendezvous, and compares their clocks.

The first node opens the port and waits for a line from each other node, its name; the answer is the
first node's time.

Source: NTP's clock offset of one exchange (RFC 5905, section 8).
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

_RETRY_SECONDS = 0.5
_LONGEST_LINE = 1024
_ANSWER_SECONDS = 2.0
"""Timeout for the name after a connection; a port scanner sends none."""


@dataclass(frozen=True, kw_only=True)
class NodeRendezvous:
    """Address and timeout of the rendezvous."""

    host: str
    """Name or address of the first node."""
    port: int
    """Port on the first node."""
    seconds: float
    """Timeout of each node."""


def wait_for_nodes(rendezvous: NodeRendezvous, others: Sequence[str]) -> list[str]:
    """Wait on the first node for all others; return the problems.

    Args:
        rendezvous: the address, which is this node's.
        others: names of the other nodes.
    """
    deadline = time.monotonic() + rendezvous.seconds
    missing = set(others)
    try:
        with socket.create_server(("", rendezvous.port)) as server:
            while missing and time.monotonic() < deadline:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                missing -= _answer(server)
    except OSError as error:
        return [f"MASTER_PORT={rendezvous.port} cannot be opened: {error}"]
    named = ", ".join(node for node in others if node in missing)
    return [f"no connection from {named} within {rendezvous.seconds:g} s"] if missing else []


def reach_first_node(rendezvous: NodeRendezvous, node: str) -> float | str:
    """Connect to the first node.

    Returns:
        seconds by which the first node's clock is ahead of this node's, or the problem.
    """
    deadline = time.monotonic() + rendezvous.seconds
    while True:
        try:
            return _exchange(rendezvous, node, max(deadline - time.monotonic(), 0.01))
        except (OSError, ValueError) as error:
            if time.monotonic() >= deadline:
                return (
                    f"cannot reach MASTER_ADDR={rendezvous.host}, MASTER_PORT={rendezvous.port} "
                    f"within {rendezvous.seconds:g} s: {error}"
                )
        time.sleep(_RETRY_SECONDS)


def _answer(server: socket.socket) -> set[str]:
    try:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(_ANSWER_SECONDS)
            name = _read_line(connection)
            connection.sendall(f"{time.time()!r}\n".encode())
            # The other end closes first, so that the port is free for the ranks at once.
            connection.recv(1)
    except OSError:  # a port scanner, or no connection yet
        return set()
    return {name}


def _exchange(rendezvous: NodeRendezvous, node: str, seconds: float) -> float:
    with socket.create_connection(
        (rendezvous.host, rendezvous.port), timeout=seconds
    ) as connection:
        before = time.time()
        connection.sendall(f"{node}\n".encode())
        theirs = float(_read_line(connection))
        return theirs - (before + time.time()) / 2


def _read_line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
        received = connection.recv(_LONGEST_LINE)
        if not received:
            break
        line += received
    return line.decode(errors="replace").strip()
