"""A free port on which the ranks of a run on this machine can meet.

Source: ip(7).
"""

import random
import socket
from pathlib import Path

_OUTGOING_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20000
"""Lowest port tried; services have fixed ports below it."""
_ATTEMPTS = 100


def free_port() -> int:
    """Return a TCP port that no program of this machine uses.

    The launcher opens it seconds later, when its ranks have started. By then an outgoing connection
    may have taken a port that the kernel chose, because both come from one range. This port lies
    below that range, where the kernel gives out none.

    Raises:
        OSError: a hundred ports in a row were taken.
    """
    chance = random.SystemRandom()  # runs with the same seed must not choose the same port
    highest = int(_OUTGOING_RANGE.read_text().split()[0]) - 1
    for _ in range(_ATTEMPTS):
        port = chance.randint(_LOWEST, max(_LOWEST, highest))
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free TCP port among {_ATTEMPTS} tried from {_LOWEST} to {highest}")
