"""Whether nodes reach the port at which their ranks will meet, and what their clocks say.

The first node opens the port and waits for one line of each other node, its name; it answers with
its time of day.

Source: ours; the difference of two clocks from one exchange is NTP's (RFC 5905, section 8).
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

_RETRY_SECONDS = 0.5
_LONGEST_LINE = 1024
_ANSWER_SECONDS = 2.0
"""Within which who has connected says its name; a port scanner says none."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the nodes meet."""

    host: str
    """Name or address of the first node."""
    port: int
    """Of the first node."""
    seconds: float
    """How long each waits for the others."""


def receive(meeting: Meeting, others: Sequence[str]) -> list[str]:
    """Wait on the first node for all others; return what went wrong.

    Args:
        meeting: where this node is.
        others: the nodes that are to come.
    """
    deadline = time.monotonic() + meeting.seconds
    missing = set(others)
    try:
        with socket.create_server(("", meeting.port)) as server:
            while missing and time.monotonic() < deadline:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                missing -= _answer(server)
    except OSError as error:
        return [f"MASTER_PORT={meeting.port} cannot be opened: {error}"]
    named = ", ".join(node for node in others if node in missing)
    return [f"did not hear of {named} within {meeting.seconds:g} s"] if missing else []


def greet(meeting: Meeting, node: str) -> float | str:
    """Reach the first node from another one.

    Returns:
        seconds that the first node's clock is ahead of this one's; or what went wrong.
    """
    deadline = time.monotonic() + meeting.seconds
    while True:
        try:
            return _exchange(meeting, node, max(deadline - time.monotonic(), 0.01))
        except (OSError, ValueError) as error:
            if time.monotonic() >= deadline:
                return (
                    f"does not reach MASTER_ADDR={meeting.host}, MASTER_PORT={meeting.port} "
                    f"within {meeting.seconds:g} s: {error}"
                )
        time.sleep(_RETRY_SECONDS)


def _answer(server: socket.socket) -> set[str]:
    try:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(_ANSWER_SECONDS)
            name = _read_line(connection)
            connection.sendall(f"{time.time()!r}\n".encode())
            # The other end closes first: the port is then free at once for the ranks.
            connection.recv(1)
    except OSError:  # a stranger, or nobody yet
        return set()
    return {name}


def _exchange(meeting: Meeting, node: str, seconds: float) -> float:
    with socket.create_connection((meeting.host, meeting.port), timeout=seconds) as connection:
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
