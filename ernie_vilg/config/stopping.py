"""How a run ends before its last step.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.schema import PositiveFloat, Settings


@dataclass(frozen=True, kw_only=True)
class StoppingConfig(Settings, section="stopping"):
    """Stopping on request: at the next step boundary, with a checkpoint."""

    max_hours: PositiveFloat | None = None
    """Hours after the start of the program at which it stops; null: no limit. Set it to the
    scheduler's limit less the time of a step and a checkpoint."""
    grace_seconds: PositiveFloat = 25.0
    """Time that whoever sends a SIGTERM waits before a SIGKILL (torchrun and deepspeed: 30). A
    checkpoint that would take longer is not begun; the last one stands."""
    requeue: bool = True
    """Whether a Slurm job that was asked to stop puts itself back into the queue; not when a person
    asked, by Ctrl-C, the file STOP or scancel."""
