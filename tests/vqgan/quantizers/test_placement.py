"""Codes are placed on rows that are far apart, or on the means of their clusters."""

import torch
from torch import Tensor

from ernie_vilg.vqgan.quantizers.placement import choose_spread_rows, cluster_means, sums_per_code


def unchanged(rows: Tensor) -> Tensor:
    return rows


def test_chosen_rows_are_all_different_while_there_are_different_ones() -> None:
    rows = torch.tensor([[0.0], [0.0], [0.0], [1.0], [5.0], [5.0]])

    chosen = choose_spread_rows(rows, 3, torch.Generator().manual_seed(0))

    assert sorted(chosen.flatten().tolist()) == [0.0, 1.0, 5.0]


def test_chosen_rows_avoid_codes_that_stay() -> None:
    rows = torch.tensor([[0.0], [7.0], [0.0]])

    chosen = choose_spread_rows(
        rows, 1, torch.Generator().manual_seed(0), codebook=torch.tensor([[0.0]])
    )

    assert chosen.tolist() == [[7.0]]


def test_more_codes_than_different_rows_repeat_rows() -> None:
    rows = torch.tensor([[1.0], [2.0]])

    chosen = choose_spread_rows(rows, 5, torch.Generator().manual_seed(0))

    assert set(chosen.flatten().tolist()) == {1.0, 2.0}


def test_means_of_clusters_after_rounds_of_k_means() -> None:
    rows = torch.tensor([[0.0], [2.0], [10.0], [14.0]])

    # Round 1: 0 | 2, 10, 14. Round 2: 0, 2 | 10, 14, for 8.67 is nearer to 10 than to 2.
    once = cluster_means(rows, torch.tensor([[0.0], [2.0]]), 1, unchanged)
    often = cluster_means(rows, torch.tensor([[0.0], [2.0]]), 5, unchanged)

    assert torch.allclose(once, torch.tensor([[0.0], [26 / 3]]))
    assert often.tolist() == [[1.0], [12.0]]


def test_cluster_without_rows_keeps_its_mean() -> None:
    means = cluster_means(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [9.0]]), 3, unchanged)

    assert means.tolist() == [[2.0], [9.0]]


def test_sums_per_code() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])

    sums = sums_per_code(rows, torch.tensor([2, 0, 2]), 3)

    assert sums.tolist() == [[1, 3, 4], [0, 0, 0], [2, 6, 8]]  # the count first
