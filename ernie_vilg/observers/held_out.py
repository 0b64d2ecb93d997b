"""Held-out pairs, divided over the replicas of a layout so that each is measured once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.engine import PaddedBatch


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The micro-batches of one replica, kept in memory."""

    num_pairs: int
    """Number of pairs over all replicas."""
    batches: tuple[PaddedBatch, ...]
    """As many on every replica; rows that stand for no pair repeat the last pair."""

    @classmethod
    def cut(
        cls,
        num_pairs: int,
        *,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        read: Callable[[np.ndarray], Batch],
    ) -> "HeldOut":
        """Read a replica's share of the pairs: replicas take micro-batches in turn.

        Args:
            num_pairs: number of pairs, above 0.
            micro_batch_size: pairs per forward pass.
            data_rank: index of the replica.
            data_size: number of replicas.
            read: reads pairs by their index, int64 [pairs], not decreasing.
        """
        per_pass = micro_batch_size * data_size
        rows = np.arange(-(-num_pairs // per_pass) * per_pass).reshape(
            -1, data_size, micro_batch_size
        )
        own = rows[:, data_rank]
        counts = (own < num_pairs).sum(axis=1)
        content = read(np.minimum(own, num_pairs - 1).reshape(-1))
        batches = zip(content.split(micro_batch_size), counts.tolist(), strict=True)
        return cls(num_pairs=num_pairs, batches=tuple(batches))
