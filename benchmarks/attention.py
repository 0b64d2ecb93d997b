"""Attention on this CPU, forward and backward: three plain products against the fused kernel.

    python benchmarks/attention.py

Backs `PLAIN_ATTENTION_MAX_SEQ` of ernie_vilg.model.attention. Prints a table and writes
outputs/benchmarks/attention.json.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.support.results import write_results
from benchmarks.support.timing import alternate
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model import attention
from ernie_vilg.model.attention_mask import both_masks

REPEATS = 7
SHAPES = (
    # (batch per direction, heads, text slots, image slots, head width)
    (16, 4, 12, 64, 48),  # quickstart, one rank
    (16, 8, 16, 64, 32),  # emoji, one rank
    (4, 8, 64, 256, 64),
    (1, 8, 64, 1024, 64),  # the paper's sequence
)


def step_of(shape: tuple[int, int, int, int, int]) -> Callable[[int], float]:
    """Return a function that times a forward and backward pass in bfloat16.

    It takes the largest number of keys for which attention uses plain products, and returns
    processor seconds.
    """
    batch, heads, text, image, width = shape
    size = (2, batch, heads, text + image, width)
    config = ModelConfig(
        hidden_size=heads * width,
        num_layers=1,
        num_heads=heads,
        text_vocab_size=8,
        text_length=text,
        codebook_size=8,
        image_grid_size=math.isqrt(image),
    )
    mask = both_masks(config)
    tensors = [torch.randn(size, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def step(max_plain: int) -> float:
        attention.PLAIN_ATTENTION_MAX_SEQ = max_plain
        started = time.process_time()
        output = attention.attend(tensors[0], tensors[1], tensors[2], mask)
        torch.autograd.grad(output.float().sum(), tensors)
        return time.process_time() - started

    return step


def main() -> None:
    """Measure every shape both ways, in turn."""
    torch.set_num_threads(1)  # as each rank has on a CPU; steadier beside other load
    figures = []
    print(f"{'slots':>6} {'plain ms':>9} {'fused ms':>9} {'fused / plain':>14}")
    for shape in SHAPES:
        slots = shape[2] + shape[3]
        step = step_of(shape)
        times = alternate({"plain": partial(step, slots), "fused": partial(step, 0)}, REPEATS)
        plain, fused = (statistics.median(times[name]) for name in ("plain", "fused"))
        print(f"{slots:6d} {1000 * plain:9.2f} {1000 * fused:9.2f} {fused / plain:14.2f}")
        figures.append(
            {
                "metric": f"fused over plain, {slots} slots",
                "value": fused / plain,
                "unit": "ratio",
                "baseline": "plain products, same run",
            }
        )
    write_results("attention", figures)


if __name__ == "__main__":
    main()
