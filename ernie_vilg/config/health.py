"""How often the two directions of the model are held against each other.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_input


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Two-way health: both directions' gradients, and round trips between text and image."""

    every: int = 0
    """Steps between two measurements; 0 turns them off."""
    pairs: str | None = None
    """Folder of raw pairs (captions.jsonl) that are measured on; null takes samples.pairs."""
    count: int = 8
    """Pairs per measurement, from the top of the file."""

    def __post_init__(self) -> None:
        check_local_input(**{"health.pairs": self.pairs})
        if self.every < 0:
            raise InputError(f"health.every={self.every}: must be 0 (never) or above")
        if self.count < 1:
            raise InputError(f"health.count={self.count}: must be at least 1")
