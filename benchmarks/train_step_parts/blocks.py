"""Arithmetic on attention masks: the fraction of blocks that holds a visible pair."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support import tables
from benchmarks.support.measurer import Result
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model import block_sparse
from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks


def block_shares(config: ModelConfig) -> list[Result]:
    """Return the shares of computed pairs and blocks by pattern and direction."""
    rows = []
    for name, row_pattern, pattern in (
        ("full", "raster", Pattern.FULL),
        ("row, raster", "raster", Pattern.ROW),
        ("row, block", "block", Pattern.ROW),
        ("column", "raster", Pattern.COLUMN),
        ("convolution", "raster", Pattern.CONVOLUTION),
    ):
        shape = replace(config, row_pattern=row_pattern)
        for direction in Direction:
            mask = both_masks(shape, pattern)[direction]
            order = torch.arange(config.seq_length)
            if pattern is Pattern.COLUMN:
                order = block_sparse.transpose_grid(order[:, None], shape)[:, 0]
            ours = mask[order][:, order]
            rows.append(
                {
                    "pattern": name,
                    "direction": direction.name.lower().replace("_", "-"),
                    "visible pairs": float(mask.float().mean()),
                    "blocks in raster order": non_empty(mask, block_sparse.BLOCK_SIZE),
                    "blocks as we order them": kept_blocks(shape, pattern, direction),
                    "blocks of 64": non_empty(ours, 64),
                }
            )
    return rows


def non_empty(mask: Tensor, size: int) -> float:
    """Return the share of size x size blocks in which a query sees a key."""
    missing = -len(mask) % size
    blocks = F.pad(mask, (0, missing, 0, missing)).unflatten(1, (-1, size)).unflatten(0, (-1, size))
    return float(blocks.any(dim=3).any(dim=1).float().mean())


def kept_blocks(config: ModelConfig, pattern: Pattern, direction: Direction) -> float:
    """Return the share of blocks that the kernel computes."""
    mask = block_sparse.block_masks(config, pattern, torch.device("cpu"))[direction]
    count = mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()
    return float(count) / mask.kv_indices.shape[-1] ** 2


def print_blocks(config: ModelConfig) -> list[Result]:
    """Print and return the table of blocks."""
    size = block_sparse.BLOCK_SIZE
    print(f"Blocks of {size} x {size} that are computed, {config.seq_length} slots:\n")
    orders = ["blocks, raster order", "blocks, our order", "blocks of 64, our order"]
    print(tables.header(["pattern", "direction", "visible pairs", *orders]))
    rows = block_shares(config)
    for row in rows:
        shares = [f"{100 * value:.1f} %" for value in row.values() if isinstance(value, float)]
        print(tables.row([row["pattern"], row["direction"], *shares]))
    return rows
