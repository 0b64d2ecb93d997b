"""Choice of vectors for codes: encoder outputs that are far apart, or the means of their clusters.

A code that is never the nearest gets no gradient and stays unused. Therefore a codebook starts on
encoder outputs, and the same rule moves unused codes to the outputs that are represented worst.

Source: vectors drawn by squared distance, k-means++ (Arthur and Vassilvitskii 2007); rounds of
means, Lloyd 1982.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ernie_vilg.vqgan.quantizers.distances import nearest_codes, rows_per_table, squared_distances


def choose_spread_rows(
    rows: Tensor, count: int, generator: torch.Generator, *, codebook: Tensor | None = None
) -> Tensor:
    """Choose rows that are far from each other and from the codes that stay.

    Each row is drawn with a probability in proportion to its squared distance from the nearest
    vector chosen so far. Once every row is chosen, the rest are repeats.

    Args:
        rows: candidates, float32 [rows, embedding].
        count: number of rows to choose.
        generator: random generator on the rows' device.
        codebook: codes that stay, float32 [codes, embedding], or None.

    Returns:
        the chosen rows, float32 [count, embedding].
    """
    if codebook is None or len(codebook) == 0:
        distance = torch.full((len(rows),), torch.inf, device=rows.device)
    else:
        distance = _distance_to_nearest(rows, codebook)
    draws = torch.rand(count, generator=generator, device=rows.device)
    chosen = torch.empty(count, dtype=torch.int64, device=rows.device)
    for index in range(count):
        # While nothing is chosen, all rows are equally far: the first draw is uniform.
        weight = torch.where(distance.isinf(), 1.0, distance).double().cumsum(0)
        row = torch.searchsorted(weight, draws[index].double() * weight[-1], right=True)
        row = row.clamp_max(len(rows) - 1)
        chosen[index] = row
        distance = torch.minimum(distance, (rows - rows[row]).square().sum(dim=1))
    return rows[chosen]


def cluster_means(
    rows: Tensor, means: Tensor, iterations: int, to_code_space: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the means of the rows' clusters after some rounds of k-means.

    A cluster that loses all its rows keeps its mean.

    Args:
        rows: vectors, float32 [rows, embedding].
        means: first means, float32 [codes, embedding].
        iterations: number of rounds.
        to_code_space: puts means among the vectors that codes may be, such as those of length 1.

    Returns:
        means, float32 [codes, embedding].
    """
    for _ in range(iterations):
        counts, sums = sums_per_code(rows, nearest_codes(rows, means), len(means)).tensor_split(
            (1,), dim=1
        )
        moved = to_code_space(sums / counts.clamp_min(1))
        means = torch.where(counts > 0, moved, means)
    return means


def sums_per_code(rows: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """Return the number and the sum of the rows of each code, without waiting for a device.

    Args:
        rows: vectors, float32 [rows, embedding].
        codes: code of each row, int64 [rows].
        num_codes: size of the codebook.

    Returns:
        counts, exact up to 2**24, beside sums, float32 [codes, 1 + embedding].
    """
    values = torch.cat([torch.ones_like(rows[:, :1]), rows], dim=1)
    # index_put_ sorts on a GPU; index_add_ would add in any order, and resume would not be exact.
    sums = rows.new_zeros(num_codes, values.shape[1])
    return sums.index_put_((codes,), values, accumulate=True)


def _distance_to_nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    chunks = rows.split(rows_per_table(len(codebook)))
    nearest = [squared_distances(chunk, codebook).amin(dim=1) for chunk in chunks]
    return torch.cat(nearest).clamp_min_(0)
