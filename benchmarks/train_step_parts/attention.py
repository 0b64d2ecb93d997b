"""Time and memory of attention alone, kernel by kernel."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

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

KERNEL_OPTIONS: dict[str, dict[str, Any]] = {
    "torch's choice": {},
    "64 keys forward": {"fwd_BLOCK_N": 64},
    "64 x 64 backward": {
        **{f"bwd_BLOCK_{side}": 64 for side in ("M1", "N1", "M2", "N2")},
        "bwd_num_warps": 4,
    },
    "2 stages backward": {"bwd_num_stages": 2},
    "8 warps forward": {"fwd_num_warps": 8},
    "no empty rows": {"ROWS_GUARANTEED_SAFE": True, "PRESCALE_QK": True},
    "tensor memory accelerator": {"USE_TMA": True},
}
"""Options of flex_attention that may be faster on Hopper than torch's own choice, which for our
heads is 128 x 128 forward with 4 warps and 64 x 128 backward with 8. The blocks of the mask stay
128 x 128: torch's backward kernel for sm_90 has only configurations of 128 keys, and skips them for
smaller blocks whatever the options say."""


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
    for pattern in (Pattern.ROW, Pattern.CONVOLUTION):
        for name, options in KERNEL_OPTIONS.items():
            kinds[f"flex, {pattern.value}, {name}"] = with_options(config, pattern, options)
    return kinds


def with_options(
    config: ModelConfig, pattern: Pattern, options: dict[str, Any], backend: str = "inductor"
) -> Callable[..., Tensor]:
    """Return sparse attention compiled with options of flex_attention's kernel.

    Args:
        config: the model's shape.
        pattern: the mask's pattern.
        options: `kernel_options` of flex_attention; empty leaves torch's choice.
        backend: compiler, as torch.compile names it.
    """
    attention = block_sparse.BlockSparseAttention(config, pattern, compiled=False)
    compiled = torch.compile(attention, dynamic=False, fullgraph=True, backend=backend)
    theirs = block_sparse.flex_attention
    masks: list[object] = []

    def chosen(*arguments: Any, **words: Any) -> Any:
        return theirs(*arguments, **words, kernel_options=options)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not masks:
            masks.append(attention.build(query.device))
        block_sparse.flex_attention = chosen
        try:
            attended: Tensor = compiled(query, key, value)
            return attended
        finally:
            block_sparse.flex_attention = theirs

    return run


def measure_attention(config: ModelConfig, pairs: int, only: str = "") -> Iterator[Result]:
    """Yield the time and memory of each way to attend, forward and backward, in bf16.

    Args:
        config: the model's shape.
        pairs: sequences per direction.
        only: beginning of the names of the ways to measure; empty measures all.
    """
    device = machine()
    kinds = attention_kinds(config, device)
    for name, attention in kinds.items():
        if not name.startswith(only):
            continue
        torch._dynamo.reset()  # each way compiles for itself
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
