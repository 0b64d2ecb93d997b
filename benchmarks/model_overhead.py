"""Cost of our code over plain torch layers of the same shape: forward and backward on a CPU.

    python benchmarks/model_overhead.py              # base_300m, 24 layers
    python benchmarks/model_overhead.py --layers 4   # minutes less

Both models have the same layers in the same order, the same masks and the same ids. Their runs
alternate, so that other load on the machine hits both. Times are processor times of one thread by
default: on a shared machine they are steadier than the wall clock, on a quiet one they are equal.
Prints a table and writes outputs/benchmarks/model_overhead.json. The ratio must be at most 1.15.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.support.models import random_batch, read_model
from benchmarks.support.results import write_results
from benchmarks.support.timing import alternate
from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.model.attention_mask import both_masks, pattern_of_block
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Objective
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine.settings import cpu_has_amx

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class PlainBlock(nn.Module):
    """A pre-norm transformer layer in its textbook form."""

    def __init__(self, config: ModelConfig, mask: Tensor) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, config.ffn_multiplier * hidden)
        self.down = nn.Linear(config.ffn_multiplier * hidden, hidden)
        self.register_buffer("mask", mask)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [sequences, seq, hidden] to the same."""
        split = self.query_key_value(self.attention_norm(hidden)).chunk(3, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in split
        )
        attended = F.scaled_dot_product_attention(query, key, value, self.mask)
        hidden = hidden + self.output(attended.transpose(1, 2).flatten(-2))
        return hidden + self.down(F.gelu(self.up(self.feed_forward_norm(hidden))))


class PlainModel(nn.Module):
    """Embeddings, layers and two output projections: two sequences per pair, as one batch."""

    def __init__(self, config: ModelConfig, batch: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.text_length = config.text_length
        self.text_embedding = nn.Embedding(config.text_vocab_size, hidden)
        self.image_embedding = nn.Embedding(config.codebook_size, hidden)
        self.position = nn.Parameter(torch.randn(2, 1, config.seq_length, hidden) * 0.02)
        blocks = []
        for index in range(1, config.num_layers + 1):
            masks = both_masks(config, pattern_of_block(config, index))
            # [sequences, heads, query, key]
            blocks.append(PlainBlock(config, masks.repeat_interleave(batch, 0)[:, None]))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(hidden)
        self.image_logits = nn.Linear(hidden, config.codebook_size)
        self.text_logits = nn.Linear(hidden, config.text_vocab_size)

    def forward(self, text: Tensor, codes: Tensor) -> Tensor:
        """Return the loss of both directions."""
        tokens = torch.cat([self.text_embedding(text), self.image_embedding(codes)], dim=1)
        hidden = self.blocks((tokens + self.position).flatten(0, 1)).unflatten(0, (2, -1))
        image = self.image_logits(self.norm(hidden[0, :, self.text_length :])).float()
        pieces = self.text_logits(self.norm(hidden[1, :, : self.text_length])).float()
        return F.cross_entropy(image.flatten(0, 1), codes.flatten()) + F.cross_entropy(
            pieces.flatten(0, 1), text.flatten()
        )


def our_step(config: ModelConfig, precision: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that runs our forward pass and loss."""
    model = build_transformer(config)
    initialize(model.named_parameters(), config, seed=0)
    model.to(precision)
    objective = Objective(ObjectiveConfig(), SINGLE_DEVICE)

    def run(text: Tensor, codes: Tensor) -> Tensor:
        model.zero_grad()
        targets = torch.tensor([float(text.numel())])
        return objective(model((text, codes)), (text, codes, targets)).total

    return run


def plain_step(
    config: ModelConfig, batch: int, precision: torch.dtype
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that runs the plain model's forward pass and loss."""
    model = PlainModel(config, batch).to(precision)

    def run(text: Tensor, codes: Tensor) -> Tensor:
        model.zero_grad()
        return model(text, codes)

    return run


def seconds_of(
    step: Callable[[Tensor, Tensor], Tensor], text: Tensor, codes: Tensor
) -> tuple[float, float]:
    """Return the processor's seconds in the forward and in the backward pass."""
    started = time.process_time()
    loss = step(text, codes)
    turned = time.process_time()
    loss.backward()
    return turned - started, time.process_time() - turned


def main() -> None:
    """Measure both models in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24, help="transformer blocks")
    parser.add_argument("--batch", type=int, default=1, help="pairs; each has two sequences")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each model")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--attention", choices=("full", "sparse"), default="sparse")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="bf16" if cpu_has_amx() else "fp32"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = read_model("base_300m", num_layers=options.layers, attention=options.attention)
    precision = PRECISIONS[options.precision]
    torch.manual_seed(0)
    # No padding, so that both models predict every slot.
    batch = random_batch(config, options.batch, seed=0)
    steps = {
        "ours": our_step(config, precision),
        "plain": plain_step(config, options.batch, precision),
    }
    runs = {
        name: partial(seconds_of, step, batch.text, batch.codes) for name, step in steps.items()
    }
    _report(options, alternate(runs, options.repeats))


def _report(options: argparse.Namespace, times: dict[str, list[tuple[float, float]]]) -> None:
    print(
        f"{options.layers} layers, {options.batch} pair(s), {options.attention} attention, "
        f"{options.precision}, {torch.get_num_threads()} thread(s), {options.repeats} repeats"
    )
    print(f"{'':8} {'forward s':>10} {'backward s':>11} {'sum s':>8} {'fastest s':>10}")
    sums = {}
    for name, runs in times.items():
        sums[name] = [forward + backward for forward, backward in runs]
        print(
            f"{name:8} {statistics.median(run[0] for run in runs):10.3f} "
            f"{statistics.median(run[1] for run in runs):11.3f} "
            f"{statistics.median(sums[name]):8.3f} {min(sums[name]):10.3f}"
        )
    ratio = statistics.median(sums["ours"]) / statistics.median(sums["plain"])
    pairs = [ours / plain for ours, plain in zip(sums["ours"], sums["plain"], strict=True)]
    print(f"ours / plain: {ratio:.3f} of medians, {min(pairs):.3f} to {max(pairs):.3f} run by run")
    figure = {
        "metric": f"model over plain torch layers, {options.layers} layers, {options.precision}",
        "value": ratio,
        "unit": "ratio",
        "baseline": "plain torch layers, same run",
        "seconds": sums,
    }
    write_results("model_overhead", [figure])


if __name__ == "__main__":
    main()
