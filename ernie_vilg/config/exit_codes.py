"""What the exit code of a program says to whoever started it.

Launchers may put their own code in its place: torchrun's is 1 whatever its ranks' were. Of a
training run, `stopped.json` in the run folder therefore says the same.

Source: ours; 75 is EX_TEMPFAIL of sysexits(3), "try again later".
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a program ended."""

    DONE = 0
    """All there was to do is done."""
    FAILED = 1
    """Something broke; the same command may go on from the last checkpoint."""
    BAD_SETTINGS = 2
    """The same command will fail again: the message says what to change."""
    STOPPED = 75
    """Stopped on request, with a checkpoint; the same command goes on from there."""
