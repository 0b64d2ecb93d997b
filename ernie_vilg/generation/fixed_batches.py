"""Batches of one size, so that a row's result does not depend on its company.

A matrix product picks its kernel by its shape, and another kernel adds in another order: in float32
a row of a batch of 3 may differ in the last bits from the same row alone. Batches that all have
as many rows take the same kernels. Rows that are missing repeat the last one.

Source: ours.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NUM_ROWS, NUM_ROWS_OF_A_CPU = 64, 16
"""Rows of every batch in float32. A GPU waits for the weights, however many rows there are. On a
CPU a row alone costs twice as much as it would, and 64 rows 1.6 times as much as in one batch."""


def in_fixed_batches(
    work: Callable[..., tuple[Any, ...]], *inputs: Tensor, like: Tensor
) -> list[Any]:
    """Apply a function to the rows of some tensors, a fixed number at a time.

    Args:
        work: takes as many tensors, and returns tensors of as many rows, or None.
        inputs: tensors of the same number of rows, at least one.
        like: a weight, of the type and on the device of the computation; other than in float32 all
            rows are one batch, because there the results of a row depend on its batch in any case.

    Returns:
        what `work` returned, for all rows.
    """
    num_rows = len(inputs[0])
    size = NUM_ROWS_OF_A_CPU if like.device.type == "cpu" else NUM_ROWS
    if like.dtype != torch.float32:
        size = num_rows
    parts = []
    for start in range(0, num_rows, size):
        rows = torch.arange(start, start + size).clamp(max=num_rows - 1)
        results = work(*(tensor[rows.to(tensor.device)] for tensor in inputs))
        kept = min(size, num_rows - start)
        parts.append([None if result is None else result[:kept] for result in results])
    columns = zip(*parts, strict=True)
    return [None if column[0] is None else torch.cat(column) for column in columns]
