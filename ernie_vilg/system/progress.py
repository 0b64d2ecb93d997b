"""Progress of long work: a tqdm bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LOG_EVERY_SECONDS = 10.0

logger = logging.getLogger(__name__)


def progress(items: Iterable[Item], *, total: int, what: str, unit: str) -> Iterator[Item]:
    """Yield the items, and show how many are done, the rate, and the time left.

    Args:
        items: any iterable.
        total: number of items.
        what: the work in a few words, such as "encode shards".
        unit: plural name of the items, such as "shards".
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit=f" {unit}")
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= _LOG_EVERY_SECONDS:
            last = now
            logger.info("%s: %s", what, rate_line(done, total, now - start, unit))
    logger.info("%s: %d %s in %.1f s", what, done, unit, time.monotonic() - start)


def rate_line(done: int, total: int, elapsed_seconds: float, unit: str) -> str:
    """Write the number of items done, the rate, and the time left."""
    rate = done / max(elapsed_seconds, 1e-9)
    left = duration(max(total - done, 0) / max(rate, 1e-9))
    return f"{done}/{total} {unit}, {rate:.1f} {unit}/s, {left} left"


def duration(seconds: float) -> str:
    """Write a duration for people: 42s, 3m20s, 5h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
