"""Use of the codebook: over all shards, and how far each shard departs from all of them.

Drift is measured within the data, since not every tokenizer's card has a histogram: the
Jensen-Shannon divergence of a shard's histogram from that of all shards. Chance alone gives a shard
of n pictures a divergence in proportion to 1/n, so divergence times pictures is compared. A shard
far above the median holds other pictures than the rest, by design or by a fault. Where the card has
a histogram, the divergence of all shards from it is reported too: it is large where a tokenizer
meets pictures unlike those that it was measured on.

Source: divergence of Lin 1991, Divergence measures based on the Shannon entropy; perplexity as in
VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ernie_vilg.vqgan.quantizers.usage import codebook_usage

MIN_SHARDS = 8
"""Fewest shards of which one can be called unlike the others."""
MAX_OF_MEDIAN = 5.0
"""Largest ratio of a shard's divergence, times its pictures, to the median of all shards."""
MOST_USED = 8


@dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """Use of the codebook over all shards."""

    codebook_size: int
    num_codes: int
    """Number of codes in all pictures."""
    num_used: int
    """Number of different codes that occur."""
    perplexity: float
    """Number of equally frequent codes that would carry as much information."""
    most_used: tuple[tuple[int, float], ...]
    """The most frequent codes and their shares."""
    shares: tuple[float, ...]
    """Shares of all codes, the largest first, thinned to a few hundred for the chart."""
    divergences: tuple[float, ...]
    """Jensen-Shannon divergence of each shard from all shards, bits, thinned likewise."""
    from_card: float | None = None
    """Jensen-Shannon divergence of all shards from the counts on the tokenizer's card, bits; None
    without these counts or without any code."""


def code_statistics(
    histogram: np.ndarray, divergences: Sequence[float], expected: Sequence[int] | None = None
) -> CodeStatistics:
    """Summarise the use of the codebook.

    Args:
        histogram: uses per code, int64 [codebook].
        divergences: divergence of each shard, bits.
        expected: uses per code on the tokenizer's card; None without them.
    """
    card = np.array([] if expected is None else expected)
    is_comparable = len(card) == len(histogram) and card.sum() > 0 and histogram.sum() > 0
    usage, perplexity = codebook_usage(torch.from_numpy(histogram))
    total = max(1, int(histogram.sum()))
    order = np.argsort(-histogram, kind="stable")
    shares = (histogram[order] / total).tolist()
    return CodeStatistics(
        codebook_size=len(histogram),
        num_codes=int(histogram.sum()),
        num_used=round(usage * len(histogram)),
        perplexity=perplexity,
        most_used=tuple(zip(order[:MOST_USED].tolist(), shares, strict=False)),
        shares=thinned(shares),
        divergences=thinned(divergences),
        from_card=divergence(histogram, card) if is_comparable else None,
    )


def thinned(values: Sequence[float], most: int = 400) -> tuple[float, ...]:
    """Return at most `most` of the values, at even distances, the first and last included."""
    if len(values) <= most:
        return tuple(values)
    return tuple(values[round(at)] for at in np.linspace(0, len(values) - 1, most).tolist())


def divergence(counts: np.ndarray, others: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two histograms, in bits: 0 if alike, at most 1.

    Args:
        counts: uses per code, at least one, int64 [codebook].
        others: the same for another set of pictures.
    """
    one, other = counts / counts.sum(), others / others.sum()
    middle = (one + other) / 2
    return float(_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2


def unlike_shards(divergences: Sequence[float], num_pictures: Sequence[int]) -> Iterator[int]:
    """Yield the positions of the shards that use the codebook unlike the others.

    Args:
        divergences: divergence of each shard, bits.
        num_pictures: pictures of each shard.
    """
    scaled = np.array(divergences) * np.array(num_pictures)
    limit = MAX_OF_MEDIAN * float(np.median(scaled))
    yield from np.flatnonzero(scaled > limit).tolist()


def _relative_entropy(one: np.ndarray, other: np.ndarray) -> float:
    is_used = one > 0
    return float((one[is_used] * np.log2(one[is_used] / other[is_used])).sum())
