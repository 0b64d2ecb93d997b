"""Quantizers on synthetic rows: usage and error by rule, start and revival; time of the search.

    python benchmarks/quantizers.py

A small autoencoder learns rows of a mixture of unevenly frequent clusters through each quantizer.
Backs the table in docs/image_tokenizer.md. Prints tables and writes
outputs/benchmarks/quantizers.json.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.support.results import write_results
from benchmarks.support.tables import header, row
from benchmarks.support.timing import alternate
from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.tokenizer_training.codebook import (
    CodebookUpkeep,
    forget_moments,
)
from ernie_vilg.vqgan.quantizers.build import build_quantizer
from ernie_vilg.vqgan.quantizers.distances import nearest_codes
from ernie_vilg.vqgan.quantizers.quantizer import Quantizer
from ernie_vilg.vqgan.quantizers.usage import codebook_figures

CODES, EMBEDDING, FEATURES, CLUSTERS = 512, 8, 32, 1024
PICTURES, GRID = 16, 8  # 1,024 rows per step
RULES: dict[str, dict[str, Any]] = {
    "nearest": {},
    "nearest, rotation trick": {"straight_through": "rotation"},
    "nearest, entropy weight 0.1": {"entropy_weight": 0.1, "entropy_temperature": 0.1},
    "ema": {"ema_decay": 0.95},  # 20 steps, for runs of a few hundred
    "normalized": {},
    "simvq": {},
    "gumbel": {},
}
STARTS = ("random", "spread", "kmeans")
SEARCHES = (
    # (rows, codes, embedding)
    (1024, 8192, 256),  # one picture of VQGAN f8
    (16384, 8192, 256),
    (16384, 8192, 8),
    (65536, 512, 16),
)


class Mixture:
    """Rows of clusters in a space of few dimensions, mapped into one of many."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.centres = torch.randn(CLUSTERS, EMBEDDING, generator=random)
        # Frequency falls as 1 / rank, as that of the patches of pictures does.
        self.weights = 1 / torch.arange(1, CLUSTERS + 1)
        self.lift = torch.randn(EMBEDDING, FEATURES, generator=random) / math.sqrt(EMBEDDING)

    def draw(self, seed: int, pictures: int = PICTURES) -> Tensor:
        """Return features, float32 [pictures, features, grid, grid]."""
        random = torch.Generator().manual_seed(seed)
        count = pictures * GRID * GRID
        cluster = torch.multinomial(self.weights, count, replacement=True, generator=random)
        rows = self.centres[cluster] + 0.1 * torch.randn(count, EMBEDDING, generator=random)
        return (rows @ self.lift).tanh().view(pictures, GRID, GRID, -1).permute(0, 3, 1, 2)


def train(
    rule: str, settings: dict[str, Any], start: str, revive_every: int, steps: int
) -> dict[str, float]:
    """Return usage, perplexity and error on rows that were not trained on."""
    how: dict[str, Any] = {"initialization": "kmeans"} if start == "kmeans" else {}
    config = CodebookConfig(**settings, **how, revive_every=revive_every)
    torch.manual_seed(0)
    quantizer = build_quantizer(
        ImageTokenizerConfig(codebook_size=CODES, embedding_size=EMBEDDING, quantizer=rule),  # type: ignore[arg-type]
        config,
    )
    encoder = nn.Sequential(nn.Conv2d(FEATURES, 64, 1), nn.SiLU(), nn.Conv2d(64, EMBEDDING, 1))
    decoder = nn.Sequential(nn.Conv2d(EMBEDDING, 64, 1), nn.SiLU(), nn.Conv2d(64, FEATURES, 1))
    parameters = [p for part in (encoder, quantizer, decoder) for p in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3.0e-3)
    upkeep = CodebookUpkeep(
        quantizer, config, lambda indices: forget_moments(optimizer, quantizer, indices)
    )
    mixture, made = Mixture(), torch.tensor(True)
    for step in range(steps):
        features = mixture.draw(1 + step)
        random = torch.Generator().manual_seed(step)
        if step == 0 and start != "random":
            upkeep.start(encoder(features), random)
        elif upkeep.is_due(step, steps):
            upkeep.revive(encoder(features), random)
        quantized = quantizer(encoder(features), progress=step / steps, generator=random)
        loss = F.mse_loss(decoder(quantized.vectors), features) + sum(quantized.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if quantized.statistics is not None:
            quantizer.update(quantized.statistics, made)
        upkeep.count(quantized.codes, made)
    return measure(encoder, quantizer, decoder, mixture.draw(0, 16 * PICTURES))


@torch.no_grad()
def measure(
    encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, features: Tensor
) -> dict[str, float]:
    """Return usage, perplexity and relative error on features [pictures, features, grid, grid]."""
    codes = quantizer.nearest(encoder(features))
    error = F.mse_loss(decoder(quantizer.lookup(codes)), features) / features.var()
    figures = codebook_figures(torch.bincount(codes.flatten(), minlength=CODES))
    return {**figures, "relative_error": float(error)}


def study(steps: int) -> list[dict[str, Any]]:
    """Train every rule from every start, without and with revival."""
    found = []
    for name, settings in RULES.items():
        rule = name.partition(",")[0]
        cases = [(start, every) for start in STARTS for every in (0, 20)]
        for start, every in cases if rule != "gumbel" else cases[:1]:
            figures = train(rule, settings, start, every, steps)
            found.append({"rule": name, "start": start, "revive_every": every, **figures})
    return found


def print_study(found: list[dict[str, Any]]) -> None:
    """Print codes in use and relative error, a row per rule and a column per start."""
    columns = [(start, every) for start in STARTS for every in (0, 20)]
    names = [f"{start}{', revival' if every else ''}" for start, every in columns]
    print(header(["rule", *names]))
    for rule in RULES:
        figures = {(f["start"], f["revive_every"]): f for f in found if f["rule"] == rule}
        cells = [
            f"{100 * figures[column]['codebook_usage']:.0f} %, "
            f"{figures[column]['relative_error']:.3f}"
            if column in figures
            else "-"
            for column in columns
        ]
        print(row([rule, *cells]))


def time_search(repeats: int) -> list[dict[str, Any]]:
    """Time our search against a table of all distances."""
    found = []
    print(header(["rows x codes x embedding", "whole table, ms", "ours, ms", "ratio"]))
    for rows, codes, embedding in SEARCHES:
        random = torch.Generator().manual_seed(0)
        vectors, codebook = (torch.randn(n, embedding, generator=random) for n in (rows, codes))
        searches = {
            "whole": lambda v=vectors, c=codebook: torch.cdist(v, c).argmin(dim=1),
            "ours": lambda v=vectors, c=codebook: nearest_codes(v, c),
        }
        times = alternate({name: timed(search) for name, search in searches.items()}, repeats)
        whole, ours = (1000 * statistics.median(times[name]) for name in ("whole", "ours"))
        shape = f"{rows:,} x {codes:,} x {embedding}"
        print(row([shape, f"{whole:.0f}", f"{ours:.0f}", f"{whole / ours:.2f}"]))
        found.append({"shape": shape, "whole_ms": whole, "ours_ms": ours})
    return found


def timed(search: Callable[[], Tensor]) -> Callable[[], float]:
    """Return a function that returns the processor seconds of a search."""

    def run() -> float:
        started = time.process_time()
        search()
        return time.process_time() - started

    return run


def main() -> None:
    """Run the study and time the search."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as each rank has on a CPU; steadier beside other load
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found = study(arguments.steps)
    print_study(found)
    searches = time_search(arguments.repeats)
    write_results("quantizers", {"steps": arguments.steps, "study": found, "search": searches})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
