"""Where a run's metrics and pictures go besides its own folder.

Source: ours.
"""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import PositiveFloat, Settings


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Settings, section="tracking"):
    """Weights & Biases. `metrics.jsonl` in the run folder is written always."""

    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """online, offline, disabled, or auto: online where a login is found (WANDB_API_KEY or
    netrc), else offline."""
    project: str = "ernie_vilg"
    """W&B project."""
    name: str | None = None
    """W&B run name; null takes the name of the run folder."""
    finish_seconds: PositiveFloat = 15.0
    """How long the end of a run waits for W&B to send what it has. What is not sent by then lies
    in the run folder, for `wandb sync`."""
