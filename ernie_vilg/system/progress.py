"""Progress of long work: a tqdm bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LOG_EVERY_SECONDS = 10.0

logger = logging.getLogger(__name__)


def progress(
    items: Iterable[Item],
    *,
    total: int,
    what: str,
    unit: str,
    status: Callable[[], str] | None = None,
) -> Iterator[Item]:
    """Yield the items, and show how many are done, the rate, and the time left.

    Args:
        items: any iterable.
        total: number of items.
        what: the work in a few words, such as "encode shards".
        unit: plural name of the items, such as "shards".
        status: describes the items so far, such as "12 rejected".
    """
    if sys.stderr.isatty():
        yield from _bar(items, total=total, what=what, unit=unit, status=status)
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= _LOG_EVERY_SECONDS:
            last = now
            logger.info("%s: %s%s", what, rate_line(done, total, now - start, unit), _added(status))
    logger.info("%s: %d %s in %.1f s%s", what, done, unit, time.monotonic() - start, _added(status))


def _bar(
    items: Iterable[Item],
    *,
    total: int,
    what: str,
    unit: str,
    status: Callable[[], str] | None,
) -> Iterator[Item]:
    with tqdm(items, total=total, desc=what, unit=f" {unit}") as bar:
        for item in bar:
            yield item
            if status is not None:
                bar.set_postfix_str(status(), refresh=False)


def _added(status: Callable[[], str] | None) -> str:
    return "" if status is None else f"; {status()}"


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
