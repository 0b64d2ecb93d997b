"""Settings of the statistics of gradients, weights, updates and activations."""

from dataclasses import dataclass

from ernie_vilg.config.schema import NaturalInt, Settings


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig(Settings, section="statistics"):
    """Norms of gradients, weights and updates by kind of parameter, and largest activations."""

    every: NaturalInt = 0
    """Interval of measured steps; 0 turns them off. Other steps cost nothing."""
    by_layer: bool = False
    """Whether the norms are also given for each layer, embedding and head included."""
