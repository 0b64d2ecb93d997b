"""Settings of W&B, which gets a run's metrics and pictures."""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import PositiveFloat, Settings


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Settings, section="tracking"):
    """Weights & Biases. The run folder's `metrics.jsonl` is always written."""

    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """online, offline, disabled, or auto: online with a login (WANDB_API_KEY or netrc), else
    offline."""
    project: str = "ernie_vilg"
    """W&B project."""
    name: str | None = None
    """W&B run name; null takes the name of the run folder."""
    finish_seconds: PositiveFloat = 15.0
    """Seconds that the end of a run waits for W&B. `wandb sync` sends the rest later, from the run
    folder."""
