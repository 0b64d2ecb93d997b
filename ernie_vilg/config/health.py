"""Settings of two-way health, which compares the model's two directions."""

from dataclasses import dataclass

from ernie_vilg.config.schema import LocalInput, NaturalInt, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class HealthConfig(Settings, section="health"):
    """Two-way health: gradients of both directions, and round trips between text and image."""

    every: NaturalInt = 0
    """Interval of measurements, steps; 0 turns them off."""
    pairs: LocalInput | None = None
    """Folder of the measured raw pairs (captions.jsonl); null takes samples.pairs."""
    count: PositiveInt = 8
    """Number of pairs, the first of the file."""
