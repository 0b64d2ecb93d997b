"""Memory of this process: the C library keeps what is freed, instead of giving it back at once."""

import ctypes
from functools import lru_cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
_KEPT_BYTES = 32 << 20
"""Largest block that is taken from the heap, and most free memory at its end that is kept: glibc's
own limit for the first."""


@lru_cache(maxsize=1)  # once per process
def keep_freed_memory() -> bool:
    """Keep up to 32 MB of freed memory for the next pictures.

    Otherwise the pixels of every picture are given back to the kernel, which clears them page by
    page when the next picture wants them: a tenth of the time of preparing one.

    Returns:
        whether the C library knows the setting; nothing but speed depends on it.

    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (_MMAP_THRESHOLD, _TRIM_THRESHOLD)
    results = [
        mallopt(setting, _KEPT_BYTES) for setting in settings
    ]  # both, whatever the first says
    return results == [1, 1]
