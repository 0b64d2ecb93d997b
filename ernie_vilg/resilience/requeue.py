"""Requeueing of a stopped Slurm job.

Slurm requeues a job that it preempts (`#SBATCH --requeue`), and a job that a person cancelled must
not come back. So a job requeues itself only while Slurm counts it as running (it got a warning
signal, or reached a limit of its own), or while Slurm ends it for its time limit.

Source: scontrol(1).
"""

import logging
import subprocess

_TIMEOUT_SECONDS = 15
"""Longest wait for Slurm's controller."""

logger = logging.getLogger(__name__)


def requeue_job(job: str) -> bool:
    """Requeue a Slurm job, which ends it; return whether Slurm agreed.

    Args:
        job: its number. Slurm may end every process of it before this returns: do all else first.
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
    logger.info("Slurm job %s is requeued", job)
    return True


def _scontrol(*words: str) -> str:
    return subprocess.run(
        ["scontrol", *words], check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
    ).stdout
