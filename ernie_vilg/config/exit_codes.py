"""Exit codes of all programs.

A launcher may replace them: torchrun's exit code is 1 for every failure of a rank. A training run
therefore also writes `stopped.json` to its run folder.

Source: sysexits(3), whose EX_TEMPFAIL, "try again later", is 75.
"""

from enum import IntEnum
from pathlib import Path

from ernie_vilg.storage.files import write_bytes

REQUEUE = "requeue"
"""Message of an ending that asks the batch script to requeue the job."""


class ExitCode(IntEnum):
    """Exit code of a program."""

    DONE = 0
    """All work is done."""
    FAILED = 1
    """A failure, after which the same command may resume from the last checkpoint."""
    BAD_SETTINGS = 2
    """A wrong setting or input, which the message names; the same command fails again."""
    STOPPED = 75
    """A stop on request, with a checkpoint from which the same command resumes."""


def write_ending(file: str | None, code: ExitCode, message: str = "") -> None:
    """Write how a rank ends to the file that the batch script reads.

    When a rank ends with another code than 0, srun kills the others, maybe before the leader has
    logged anything, and srun's exit code is that of the killed ranks. The file has the run's own.
    Several ranks may write it at once, and srun may kill any of them while it writes.

    Args:
        file: `Launch.ending_file`; its first line will be the code. None writes nothing.
        code: exit code of this rank.
        message: the reason, or `REQUEUE`.
    """
    if file is not None:
        write_bytes(Path(file), f"{code.value}\n{message}\n".encode())
