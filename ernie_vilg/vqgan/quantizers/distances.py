"""Search of the nearest codes, in float32 and in bounded memory."""

import torch
from torch import Tensor

MAX_TABLE_ELEMENTS = 1 << 24
"""Largest number of distances that are held at a time, 64 MiB; a table of 8,192 codes and the rows
of 64 pictures would take 2 GiB."""


def flatten_grid(vectors: Tensor) -> Tensor:
    """Turn vectors [batch, embedding, grid, grid] into rows [batch * grid * grid, embedding]."""
    return vectors.permute(0, 2, 3, 1).flatten(0, 2)


def rows_per_table(num_codes: int, max_elements: int = MAX_TABLE_ELEMENTS) -> int:
    """Return the number of rows whose distances to all codes are held at a time."""
    return max(1, max_elements // num_codes)


def nearest_codes(
    rows: Tensor, codebook: Tensor, *, max_elements: int = MAX_TABLE_ELEMENTS
) -> Tensor:
    """Return the nearest code of each row by L2 distance, the lowest index of equally near ones.

    It computes in float32: in bfloat16 rounding would decide near ties, and the codes of training
    would differ from those of the frozen tokenizer.

    Args:
        rows: vectors, float [rows, embedding].
        codebook: vectors of the codes, float [codes, embedding].
        max_elements: largest number of distances to hold at a time.

    Returns:
        codes, int64 [rows].
    """
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        rows, codebook = rows.float(), codebook.float()
        squares = codebook.square().sum(dim=1)
        chunks = rows.split(rows_per_table(len(codebook), max_elements))
        # A row's own square is the same for every code. argmin returns the first of equal values.
        return torch.cat(
            [torch.addmm(squares, chunk, codebook.t(), alpha=-2).argmin(dim=1) for chunk in chunks]
        )


def squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return squared L2 distances, float32 [rows, codes]; rounding may turn 0 slightly negative."""
    squares = rows.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
    return torch.addmm(squares, rows, codebook.t(), alpha=-2)
