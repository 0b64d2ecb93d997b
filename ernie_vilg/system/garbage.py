"""Python's garbage collector, run at the same steps on all ranks.

Python collects when a rank has made enough objects, and a full collection takes up to a second in a
process with as many objects as torch's. Ranks wait for each other in every step, and each would
pause at a step of its own. While training, no collection happens by itself; all ranks collect at
the same steps. Objects that exist at the start are not looked at again.

Source: gc.freeze (Python's documentation); TorchTitan collects at fixed steps.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_EVERY = 50
"""Interval of collections, steps."""


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """Leave collections in the block to `collect_after`."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect_after(step: int) -> None:
    """Collect if it is due after a step."""
    if step % COLLECT_EVERY == 0:
        gc.collect()
