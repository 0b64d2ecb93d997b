"""Seeds by name: each purpose has a random stream of its own, independent of all others."""

import hashlib


def seed_named(name: str) -> int:
    """Return the seed of a name, from 0 to below 2^63, the range of torch's generators."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
