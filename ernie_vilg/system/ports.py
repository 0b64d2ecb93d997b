"""A port on which the ranks of a run on this machine can meet.

Source: ours, on ip(7).
"""

import random
import socket
from pathlib import Path

_OUTGOING_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20000
"""Below it, services have their fixed ports."""
_ATTEMPTS = 100


def free_port() -> int:
    """Return a TCP port that no program of this machine has.

    The launcher opens it seconds later, when its ranks have started. A port that the kernel
    chooses may be another connection's by then: every outgoing connection takes one from the
    same range. So this one lies below that range, where only programs that name a port take it.

    Raises:
        OSError: a hundred ports in a row were taken.
    """
    chance = random.SystemRandom()  # runs of the same seed must not choose the same port
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
