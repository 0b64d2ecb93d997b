"""The state of torch's compiler, which is global."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Forget compiled graphs and counts before and after the block."""
    from torch._dynamo.utils import counters  # two seconds that most tests do without

    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
