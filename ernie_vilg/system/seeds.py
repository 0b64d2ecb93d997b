"""A random stream for every name, so that what is drawn depends on nothing but what it is for.

Source: ours.
"""

import hashlib


def seed_named(name: str) -> int:
    """Return the seed of a name, from 0 to below 2^63, which torch's generators take."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
