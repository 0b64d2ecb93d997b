"""Settings of stopping a run before its last step."""

from dataclasses import dataclass

from ernie_vilg.config.schema import PositiveFloat, Settings


@dataclass(frozen=True, kw_only=True)
class StoppingConfig(Settings, section="stopping"):
    """Stopping on request: at the next step boundary, with a checkpoint."""

    max_hours: PositiveFloat | None = None
    """Hours from the start of the program to its stop; null sets no limit. Choose the scheduler's
    limit less the time of a step and a checkpoint."""
    grace_seconds: PositiveFloat = 25.0
    """Seconds between SIGTERM and SIGKILL of the launcher (torchrun and deepspeed: 30). A
    checkpoint that would take longer is not begun; the last one stays."""
    requeue: bool = True
    """Whether a stopped Slurm job requeues itself, unless a person stopped it by Ctrl-C, the file
    STOP or scancel."""
