"""Where a run's metrics and pictures go besides its own folder.

Source: ours.
"""

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        if self.wandb_mode not in WANDB_MODES:
            raise ValueError(
                f"tracking.wandb_mode={self.wandb_mode}: choose one of {', '.join(WANDB_MODES)}"
            )
