"""Batches of one fixed size, so that a row's result does not depend on the other rows.

A matrix product picks its kernel by its shape, and each kernel sums in its own order: in float32 a
row of a batch of 3 may differ in the last bits from the same row alone. Batches of equal size use
the same kernels. Short batches are padded with copies of the last row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NUM_ROWS, NUM_ROWS_OF_A_CPU = 64, 16
"""Rows of every batch in float32. A GPU is limited by loading the weights, whatever the number of
rows. On a CPU a fixed batch doubles the cost of a single row, and 64 rows cost 1.6 times as much
as in one batch."""


def in_fixed_batches(
    work: Callable[..., tuple[Any, ...]], *inputs: Tensor, like: Tensor
) -> list[Any]:
    """Apply a function to the rows of some tensors, a fixed number at a time.

    Args:
        work: a function of as many tensors that returns tensors of as many rows, or None.
        inputs: tensors of the same number of rows, at least one.
        like: a weight with the dtype and device of the computation. Unless it is float32, all rows
            are one batch, because in lower precision a row's result depends on its batch anyway.

    Returns:
        the results of `work` for all rows.
    """
    num_rows = len(inputs[0])
    size = batch_size(like) if like.dtype == torch.float32 else num_rows
    parts = []
    for start in range(0, num_rows, size):
        rows = rows_of_batch(inputs[0], start, size)
        results = work(*(tensor[rows.to(tensor.device)] for tensor in inputs))
        kept = min(size, num_rows - start)
        parts.append([None if result is None else result[:kept] for result in results])
    columns = zip(*parts, strict=True)
    return [None if column[0] is None else torch.cat(column) for column in columns]


def batch_size(like: Tensor) -> int:
    """Return the number of rows of a batch on the device of a weight."""
    return NUM_ROWS_OF_A_CPU if like.device.type == "cpu" else NUM_ROWS


def rows_of_batch(rows: Tensor, start: int, size: int) -> Tensor:
    """Return the indices of a batch's rows, int64 [size]; the last row repeats in a short batch."""
    return torch.arange(start, start + size).clamp(max=len(rows) - 1)
