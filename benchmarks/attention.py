"""Attention on this CPU, forward and backward: three plain products against the fused kernel.

    python benchmarks/attention.py

Backs `PLAIN_ATTENTION_MAX_SEQ` of ernie_vilg.model.attention. Prints a table and writes
outputs/benchmarks/attention.json.
"""

import math
import statistics
import time
from pathlib import Path

import torch

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model import attention
from ernie_vilg.model.attention_mask import both_masks
from ernie_vilg.storage.files import write_json

REPEATS = 7
SHAPES = (
    # (batch per direction, heads, text slots, image slots, head width)
    (16, 4, 12, 64, 48),  # quickstart, one rank
    (16, 8, 16, 64, 32),  # emoji, one rank
    (4, 8, 64, 256, 64),
    (1, 8, 64, 1024, 64),  # the paper's sequence
)


def seconds_of(shape: tuple[int, int, int, int, int], *, plain: bool) -> float:
    """Return the median of the processor's time in a forward and backward pass in bfloat16."""
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
    attention.PLAIN_ATTENTION_MAX_SEQ = text + image if plain else 0
    times = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        output = attention.attend(tensors[0], tensors[1], tensors[2], mask)
        torch.autograd.grad(output.float().sum(), tensors)
        times.append(time.process_time() - started)
    return statistics.median(times[1:])  # the first also allocates


def main() -> None:
    """Measure every shape both ways."""
    torch.set_num_threads(1)  # as each rank has on a CPU; steadier where others compute too
    figures = []
    print(f"{'slots':>6} {'plain ms':>9} {'fused ms':>9} {'fused / plain':>14}")
    for shape in SHAPES:
        slots = shape[2] + shape[3]
        plain, fused = seconds_of(shape, plain=True), seconds_of(shape, plain=False)
        print(f"{slots:6d} {1000 * plain:9.2f} {1000 * fused:9.2f} {fused / plain:14.2f}")
        figures.append(
            {
                "metric": f"fused over plain, {slots} slots",
                "value": fused / plain,
                "unit": "ratio",
                "baseline": "plain products, same run",
            }
        )
    write_json(Path("outputs/benchmarks/attention.json"), figures)


if __name__ == "__main__":
    main()
