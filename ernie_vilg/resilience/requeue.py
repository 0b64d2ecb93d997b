"""Putting a stopped Slurm job back into the queue.

A job that Slurm itself preempts goes back by itself (`#SBATCH --requeue`), and one that a person
cancelled must not come back. So a job asks to be requeued only while it counts as running (it was
sent a warning signal, or has set itself a limit), or when it is being ended for its time limit.

Source: ours, on scontrol(1).
"""

import logging
import subprocess

_SECONDS = 15
"""How long Slurm's controller may take to answer."""

logger = logging.getLogger(__name__)


def requeue_job(job: str) -> bool:
    """Have Slurm begin a job anew later, which ends it now; say whether it will.

    Args:
        job: its number. Every process of it may be ended before this returns: do all else first.
    """
    try:
        described = _scontrol("show", "job", "--oneliner", job)
        words = dict(word.partition("=")[::2] for word in described.split())
        state, reason = words.get("JobState", ""), words.get("Reason", "")
        if state != "RUNNING" and reason != "TimeLimit":
            logger.warning("Slurm job %s is %s (%s): not requeued", job, state, reason)
            return False
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        complaint = getattr(error, "stderr", None) or error
        logger.warning("Slurm job %s is not requeued, submit it again: %s", job, complaint)
        return False
    logger.info("Slurm job %s is back in the queue", job)
    return True


def _scontrol(*words: str) -> str:
    return subprocess.run(
        ["scontrol", *words], check=True, capture_output=True, text=True, timeout=_SECONDS
    ).stdout
