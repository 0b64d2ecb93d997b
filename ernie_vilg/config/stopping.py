"""How a run ends before its last step.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class StoppingConfig:
    """Stopping on request: at the next step boundary, with a checkpoint."""

    max_hours: float | None = None
    """Hours after the start of the program at which it stops; null: no limit. Set it to the
    scheduler's limit less the time of a step and a checkpoint."""
    grace_seconds: float = 25.0
    """Time that whoever sends a SIGTERM waits before a SIGKILL (torchrun and deepspeed: 30). A
    checkpoint that would take longer is not begun; the last one stands."""
    requeue: bool = True
    """Whether a Slurm job that was asked to stop puts itself back into the queue; not when a person
    asked, by Ctrl-C, the file STOP or scancel."""

    def __post_init__(self) -> None:
        if self.max_hours is not None and self.max_hours <= 0:
            raise InputError(f"stopping.max_hours={self.max_hours}: must be above 0, or null")
        if self.grace_seconds <= 0:
            raise InputError(f"stopping.grace_seconds={self.grace_seconds}: must be above 0")
