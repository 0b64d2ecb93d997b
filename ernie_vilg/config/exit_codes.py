"""What the exit code of a program says to whoever started it.

Launchers may put their own code in its place: torchrun's is 1 whatever its ranks' were. Of a
training run, `stopped.json` in the run folder therefore says the same.

Source: ours; 75 is EX_TEMPFAIL of sysexits(3), "try again later".
"""

from enum import IntEnum
from pathlib import Path

REQUEUE = "requeue"
"""An ending's message: the job shall go back into the queue."""


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


def write_ending(file: str | None, code: ExitCode, message: str = "") -> None:
    """Tell the batch script how a rank ends, where there is one that asks.

    The first rank that ends with another code than 0 has srun end the others, the leader among them
    before it has spoken, and srun's exit code is then theirs. The file still says what the run
    meant.

    Args:
        file: `Launch.ending_file`; its first line will be the code.
        code: of this rank.
        message: why, or `REQUEUE`.
    """
    if file is not None:
        Path(file).write_text(f"{code.value}\n{message}\n")
