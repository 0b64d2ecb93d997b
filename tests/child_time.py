"""How much work a program did that a test has run, whatever else the machine had to do.

Source: ours.
"""

import resource


def seconds_of_children() -> float:
    """Return the processor time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
