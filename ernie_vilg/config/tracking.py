"""Where a run's metrics and pictures go besides its own folder.

Source: ours.
"""

import math
from dataclasses import dataclass

from ernie_vilg.errors import InputError

WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases. `metrics.jsonl` in the run folder is written always."""

    wandb_mode: str = "auto"
    """online, offline, disabled, or auto: online where a login is found (WANDB_API_KEY or
    netrc), else offline."""
    project: str = "ernie_vilg"
    """W&B project."""
    name: str | None = None
    """W&B run name; null takes the name of the run folder."""
    finish_seconds: float = 15.0
    """How long the end of a run waits for W&B to send what it has. What is not sent by then lies
    in the run folder, for `wandb sync`."""

    def __post_init__(self) -> None:
        if self.wandb_mode not in WANDB_MODES:
            raise InputError(
                f"tracking.wandb_mode={self.wandb_mode}: choose one of {', '.join(WANDB_MODES)}"
            )
        if not 0 < self.finish_seconds < math.inf:
            raise InputError(
                f"tracking.finish_seconds={self.finish_seconds}: choose a number of seconds above "
                "0, or tracking.wandb_mode=disabled to do without W&B"
            )
