"""How often the two directions of the model are held against each other.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.schema import LocalInput, NaturalInt, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class HealthConfig(Settings, section="health"):
    """Two-way health: both directions' gradients, and round trips between text and image."""

    every: NaturalInt = 0
    """Steps between two measurements; 0 turns them off."""
    pairs: LocalInput | None = None
    """Folder of raw pairs (captions.jsonl) that are measured on; null takes samples.pairs."""
    count: PositiveInt = 8
    """Pairs per measurement, from the top of the file."""
