"""Time and memory of attention alone, kernel by kernel."""

import gc
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.support.measurer import Result, first_line
from benchmarks.train_step_parts.device import (
    machine,
    median_seconds,
    peak_bytes,
    reset_peak,
    wait,
)
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model import block_sparse
from ernie_vilg.model.attention import attend
from ernie_vilg.model.attention_mask import Pattern, both_masks


def attention_kinds(config: ModelConfig, device: str) -> dict[str, Callable[..., Tensor]]:
    """Return ways to attend in both directions, each from query, key and value."""
    mask = both_masks(config, Pattern.FULL).to(device)

    def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        return scores.softmax(dim=-1) @ value

    def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(
                query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), is_causal=True
            )

    kinds: dict[str, Callable[..., Tensor]] = {
        "dense, three products": products,
        "dense, SDPA with our mask": lambda *heads: attend(*heads, mask),
        "dense, flash, causal (not our mask)": flash,
    }
    if device == "cpu":
        return kinds  # flex_attention has no backward pass there
    for pattern in Pattern:
        kinds[f"flex, {pattern.value}"] = block_sparse.BlockSparseAttention(config, pattern)
    for pattern in (Pattern.ROW, Pattern.COLUMN, Pattern.CONVOLUTION):
        kinds[f"flex, {pattern.value}, blocks of 64 keys"] = _with_smaller_blocks(config, pattern)
    return kinds


def _with_smaller_blocks(config: ModelConfig, pattern: Pattern) -> Callable[..., Tensor]:
    attention = block_sparse.BlockSparseAttention(config, pattern)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if attention._masks is None:
            block_sparse.block_masks.cache_clear()
            usual = block_sparse.BLOCK_SIZE
            block_sparse.BLOCK_SIZE = (128, 64)  # queries, keys
            attention.build(query.device)
            block_sparse.BLOCK_SIZE = usual
            block_sparse.block_masks.cache_clear()
        return attention(query, key, value)

    return run


def measure_attention(config: ModelConfig, pairs: int) -> Iterator[Result]:
    """Yield the time and memory of each way to attend, forward and backward, in bf16."""
    device = machine()
    for name, attention in attention_kinds(config, device).items():
        try:
            yield {"kind": name, **_one_attention(config, attention, pairs, device)}
        except Exception as error:  # a kind that fails ends its row, not the table
            yield {"kind": name, "failed": first_line(str(error))}
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _one_attention(
    config: ModelConfig, attention: Callable[..., Tensor], pairs: int, device: str
) -> Result:
    shape = (2, pairs, config.seq_length, config.num_heads, 3, config.head_dim)
    # Parts of one projection, as in the model.
    split = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    query, key, value = split.transpose(2, 3).unbind(-2)

    def run() -> None:
        output = attention(query, key, value)
        torch.autograd.grad(output, (query, key, value), torch.ones_like(output))

    repeats, runs = (7, 10) if device == "cuda" else (5, 1)
    for _ in range(3 if device == "cuda" else 1):
        run()
    wait(device)
    before = reset_peak(device)
    run()
    wait(device)
    peak = peak_bytes(device) - before
    return {"seconds": median_seconds(run, repeats, runs, device), "bytes": peak}
