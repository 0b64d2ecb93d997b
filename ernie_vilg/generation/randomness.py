"""Random numbers that depend on an item, not on its index in a list or a batch.

An item is a cleaned prompt or a prepared picture. Its seed and the hash of its content key a
counter-based generator, and position `i` of the item uses number `i`. So an item gets the same
numbers alone, in any order, in any batch and on every device.

The first drawing of an item uses the given seed. Further candidates, and repeats of the item in the
same list, use seeds derived from it. A derived seed repeats its drawing when it is given with the
item alone.

Source: Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.system.seeds import seed_named


class Occurrences:
    """Counter of the items seen so far."""

    def __init__(self) -> None:
        """Start at zero for every item."""
        self._counts: Counter[bytes] = Counter()

    def next(self, item: bytes) -> int:
        """Return how often the item was seen before."""
        self._counts[item] += 1
        return self._counts[item] - 1


def item_of(content: bytes) -> bytes:
    """Return the name of an item: the hash of its content."""
    return hashlib.sha256(content).digest()


def drawing_seed(seed: int, occurrence: int, candidate: int) -> int:
    """Return the seed of one drawing of an item.

    Args:
        seed: the given seed of all drawings.
        occurrence: number of equal items before it in the list.
        candidate: index among the drawings of this occurrence.
    """
    if occurrence == candidate == 0:
        return seed
    return seed_named(f"{seed}/{occurrence}/{candidate}")


def uniforms(seeds: Sequence[int], items: Sequence[bytes], num_positions: int) -> Tensor:
    """Return one number per position for some drawings.

    Args:
        seeds: results of `drawing_seed`.
        items: results of `item_of`, as many.
        num_positions: largest number of tokens of a drawing.

    Returns:
        float64 [drawings, num_positions] in [0, 1), on the CPU.
    """
    rows = [_row(*key, num_positions) for key in zip(seeds, items, strict=True)]
    return torch.from_numpy(np.stack(rows))


def _row(seed: int, item: bytes, num_positions: int) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/".encode() + item).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    # The upper 53 bits, the precision of a float64.
    return (generator.random_raw(num_positions) >> np.uint64(11)) * 2.0**-53
