"""Block-sparse attention on a GPU: blocks of the mask without a visible pair are skipped.

`flex_attention` compiles one kernel per mask; those of both directions compile as one graph, at the
same time. The map of non-empty blocks is built once per pattern, direction and device. In a column
layer a query sees one key per row of the picture, so in raster order no block is empty. There,
image slots are reordered to column-major before attention and back after it, which makes columns as
dense as rows.

Source: FlexAttention (Dong et al. 2024, arXiv:2412.05496); the order of columns is ours.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention_mask import Direction, Pattern, is_visible

BLOCK_SIZE = 128
"""Queries and keys of one block."""

MIN_HEAD_DIM = 16
"""Narrowest head that the kernel takes on a GPU; narrower ones are padded with zeros."""

MAX_KERNELS = 64
"""Limit of compiled graphs: one per pattern, shape, dtype, and mode (with or without gradients).
torch's own limit of 8 is meant for code whose shapes vary by mistake."""


class BlockSparseAttention:
    """softmax(query key^T / sqrt(head_dim)) value under the mask of one pattern."""

    def __init__(self, config: ModelConfig, pattern: Pattern, *, compiled: bool = True) -> None:
        """Prepare the attention; `build` or the first call builds the masks.

        Args:
            config: the model's shape.
            pattern: the block's pattern.
            compiled: whether to run the compiled kernel. The uncompiled one computes all scores
                and serves for comparison on a CPU, where it has no backward pass.
        """
        self._config = config
        self.pattern = pattern
        """Pattern of the block."""
        self._compiled = compiled
        self._masks: tuple[BlockMask, BlockMask] | None = None

    def build(self, device: torch.device) -> tuple[BlockMask, BlockMask]:
        """Build the masks for a device, outside any compiled graph."""
        torch._dynamo.config.recompile_limit = max(
            torch._dynamo.config.recompile_limit, MAX_KERNELS
        )
        self._masks = block_masks(self._config, self.pattern, device)
        return self._masks

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from all slots to all visible slots.

        Args:
            query: float [direction, batch, heads, seq, head_dim].
            key: float, of the same shape.
            value: float, of the same shape.

        Returns:
            float, of the same shape. The softmax is computed in float32.
        """
        masks = self._masks or self.build(query.device)
        is_alone = self._compiled and not torch.compiler.is_compiling()
        attend: Any = _compiled_attention() if is_alone else attend_visible
        attended: Tensor = attend(query, key, value, masks, self._config, self.pattern)
        return attended


def attend_visible(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: tuple[BlockMask, BlockMask],
    config: ModelConfig,
    pattern: Pattern,
) -> Tensor:
    """Attend under the masks of both directions; see `BlockSparseAttention`."""
    scale = query.shape[-1] ** -0.5
    missing = max(0, MIN_HEAD_DIM - query.shape[-1])
    if missing:
        query, key, value = (F.pad(tensor, (0, missing)) for tensor in (query, key, value))
    is_column = pattern is Pattern.COLUMN
    if is_column:
        query, key, value = (transpose_grid(tensor, config) for tensor in (query, key, value))
    directions = zip(query.unbind(), key.unbind(), value.unbind(), masks, strict=True)
    attended = torch.stack(
        [_attend(tensors, mask, scale, config.pb_relax) for *tensors, mask in directions]
    )
    if is_column:
        attended = transpose_grid(attended, config)
    return attended[..., : attended.shape[-1] - missing]


def _attend(tensors: list[Tensor], mask: BlockMask, scale: float, pb_relax: float) -> Tensor:
    relax = pb_relax or 1.0

    def multiply(score: Tensor, *_: Tensor) -> Tensor:
        return score * relax

    kernel: Any = flex_attention  # its overloads do not know a list of three tensors
    attended: Tensor = kernel(
        *tensors,
        score_mod=multiply if pb_relax else None,
        block_mask=mask,
        scale=scale / relax,
    )
    return attended


def transpose_grid(tensor: Tensor, config: ModelConfig) -> Tensor:
    """Reorder the image slots from raster to column-major order, or back: it is its own inverse.

    Args:
        tensor: float [..., seq, head_dim]. Text slots and a slot after the grid keep their place.
        config: the model's shape.
    """
    grid = config.image_grid_size
    text, image, rest = tensor.split(
        [config.text_length, grid**2, config.num_image_slots - grid**2], dim=-2
    )
    # [..., row, column, head_dim] to [..., column, row, head_dim]
    turned = image.unflatten(-2, (grid, grid)).transpose(-3, -2).flatten(-3, -2)
    return torch.cat([text, turned, rest], dim=-2)


@lru_cache(maxsize=32)  # blocks of one pattern share their masks
def block_masks(
    config: ModelConfig, pattern: Pattern, device: torch.device
) -> tuple[BlockMask, BlockMask]:
    """Return the block masks of both directions; those of columns in column-major order."""
    return (
        _block_mask(config, pattern, Direction.TEXT_TO_IMAGE, device),
        _block_mask(config, pattern, Direction.IMAGE_TO_TEXT, device),
    )


def _block_mask(
    config: ModelConfig, pattern: Pattern, direction: Direction, device: torch.device
) -> BlockMask:
    size = config.seq_length
    slots = transpose_grid(torch.arange(size, device=device)[:, None], config)[:, 0]

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(config, pattern, direction, query, key)

    def mask_of_columns(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(config, pattern, direction, slots[query], slots[key])

    return create_block_mask(
        mask_of_columns if pattern is Pattern.COLUMN else mask,
        None,
        None,
        size,
        size,
        device=device.type,
        BLOCK_SIZE=BLOCK_SIZE,
    )


@lru_cache(maxsize=1)
def _compiled_attention() -> Any:
    # With fullgraph, torch raises past the limit instead of silently computing all scores.
    return torch.compile(attend_visible, dynamic=False, fullgraph=True)
