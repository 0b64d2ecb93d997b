"""Cost of a validation over bare forward passes of the same pairs, on a CPU.

    python benchmarks/validation.py
    python benchmarks/validation.py --model base_300m --pairs 24

Both take the same micro-batches through the same weights, in turn; times are processor times of one
thread. The validation also computes both directions' losses, by row and by text position, and sums
them over ranks. Prints a table and writes outputs/benchmarks/validation.json. The ratio must be at
most 1.05.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.gpu_acceptance_parts.small_engine import process_groups
from benchmarks.support.models import random_batch, random_run, read_model
from benchmarks.support.results import Requirement, print_requirements, write_results
from benchmarks.support.tables import header, row
from benchmarks.support.timing import alternate
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.observers.held_out import HeldOut
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine

NAME = "validation"
LIMIT = 1.05
_SIZE = 4
"""Pairs of a micro-batch."""


def main() -> None:
    """Measure both, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="quickstart", help="a preset of conf/model")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = read_model(options.model)
    layout = ParallelismConfig(micro_batch_size=_SIZE, global_batch_size=_SIZE)
    groups = process_groups()
    engine = build_engine(
        random_run(model, layout, precision="fp32"), groups, precision=torch.float32
    )
    pairs = random_batch(model, options.pairs, 0)
    held_out = HeldOut.cut(
        options.pairs,
        micro_batch_size=_SIZE,
        data_rank=groups.data_rank,
        data_size=groups.data_size,
        read=lambda rows: type(pairs)(text=pairs.text[rows], codes=pairs.codes[rows]),
    )
    seconds = alternate(
        {
            "forward passes": partial(processor_seconds, lambda: forward_passes(engine, held_out)),
            "validation": partial(processor_seconds, lambda: engine.evaluate(held_out.batches)),
        },
        options.repeats,
    )
    report(options.model, options.pairs, seconds)


def forward_passes(engine: Engine, held_out: HeldOut) -> None:
    """Run the model over the pairs, and use nothing of what it returns."""
    module = engine.deepspeed_engine.module
    module.eval()
    with torch.no_grad():
        for batch, _ in held_out.batches:
            module((batch.text, batch.codes))
    module.train()


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of some work, seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def report(model: str, num_pairs: int, seconds: dict[str, list[float]]) -> None:
    """Print medians, and whether the ratio is low enough."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(header((f"{model}, {num_pairs} pairs", "seconds")))
    for name, median in medians.items():
        print(row((name, f"{median:.3f}")))
    pairs = zip(seconds["validation"], seconds["forward passes"], strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    write_results(NAME, {"model": model, "pairs": num_pairs, "seconds": seconds, "ratio": ratio})
    print_requirements(
        [
            Requirement(
                what="validation / forward passes",
                value=ratio,
                bound=LIMIT,
                unit="x",
                is_lower_better=True,
            )
        ]
    )


if __name__ == "__main__":
    main()
