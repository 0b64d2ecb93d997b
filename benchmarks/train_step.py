"""A whole training step of the 10B shape on one GPU, and of a small shape on a CPU.

    python benchmarks/train_step.py            # every row
    python benchmarks/train_step.py --quick    # the main rows, under 8 minutes on an H200

Three tables: the empty blocks of attention masks (arithmetic), attention alone, and the step
through the real engine with random tokens. MFU counts the model's own operations, recomputed ones
once, over 989 TFLOP/s, the dense bf16 peak of an H100 or H200.

On a CPU the times are processor times of one thread, which hardly depend on other load. Every
configuration runs in a process of its own: one that needs too much memory or does not compile ends
its row, not the table. Writes outputs/benchmarks/train_step.json.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.support import tables
from benchmarks.support.measurer import Result, answers_within
from benchmarks.support.models import read_model
from benchmarks.support.results import hardware, write_results
from benchmarks.train_step_parts.blocks import print_blocks
from benchmarks.train_step_parts.device import machine, model_shape
from benchmarks.train_step_parts.rows import step_rows

MEASURE = "train_step_parts.measure"
"""Module of the measuring processes."""


def print_attention(device: str, limit_seconds: float) -> list[Result]:
    """Measure, print and return the table of attention alone."""
    pairs = 4 if device == "cuda" else 1
    config = replace(model_shape(device), num_layers=1)
    print(
        f"\nAttention alone, bf16, {2 * pairs} sequences of {config.seq_length}, "
        f"{config.num_heads} heads of {config.head_dim}, forward and backward:\n"
    )
    print(tables.header(["attention", "ms", "peak MiB"]))
    rows = answers_within(MEASURE, {"section": "attention", "pairs": pairs}, limit_seconds)
    for row in rows:
        name = row.get("kind", "the rest")
        if "failed" in row:
            print(tables.row([name, row["failed"], ""]))
            continue
        peak = f"{row['bytes'] / 2**20:,.0f}" if device == "cuda" else ""
        print(tables.row([name, f"{1000 * row['seconds']:.2f}", peak]))
    return rows


def print_steps(device: str, limit_seconds: float, ends: float, *, quick: bool) -> list[Result]:
    """Measure, print and return the table of steps."""
    config = model_shape(device)
    speed = "MFU" if device == "cuda" else "GFLOP/s"
    print(
        f"\nA training step, hidden {config.hidden_size}, {config.num_heads} heads, "
        f"{config.seq_length} slots:\n"
    )
    names = ["layers", "attention", "checkpointing", "compiled", "micro-batch x passes"]
    print(tables.header([*names, "ms per step", "tokens/s", speed, "peak GiB"]))
    rows = []
    for options in step_rows(device, quick=quick):
        left = ends - time.monotonic()
        if left < 30:
            print(tables.row(["no time left for the rest: raise --minutes", *[""] * 8]))
            break
        row = measured(options, min(limit_seconds, left))
        while "out of memory" in row.get("failed", "") and row["layers"] > 6:
            print(step_line(row, device), flush=True)
            row = measured({**options, "layers": row["layers"] * 3 // 4}, limit_seconds)
        print(step_line(row, device), flush=True)
        rows.append(row)
    return rows


def measured(options: Result, limit_seconds: float) -> Result:
    """Return a configuration with its results."""
    results = answers_within(MEASURE, {"section": "step", **options}, limit_seconds)
    return {**options, **{key: value for part in results for key, value in part.items()}}


def step_line(row: Result, device: str) -> str:
    """Return a row of the table of steps."""
    cells = [
        str(row["layers"]),
        row["attention"],
        row["checkpointing"],
        "yes" if row["compile"] else "no",
        f"{row['micro_batch']} x {row['accumulation']}",
    ]
    if "mfu" not in row:
        return tables.row([*cells, row.get("failed", "no result"), "", "", ""])
    speed = f"{100 * row['mfu']:.1f} %"
    if device == "cpu":
        speed = f"{row['flops_per_second'] / 1e9:.0f}"
    cells += [
        f"{1000 * row['seconds_per_step']:,.0f}",
        f"{row['tokens_per_second']:,.0f}",
        speed,
        f"{row['peak_bytes'] / 2**30:.1f}",
    ]
    return tables.row(cells)


def figures(steps: list[Result], attention: list[Result], blocks: list[Result]) -> list[Result]:
    """Return the content of the file: a named figure per row, and the row."""
    found: list[Result] = []
    for row in steps:
        name = ", ".join(
            f"{key}={row[key]}"
            for key in ("layers", "attention", "checkpointing", "compile", "micro_batch")
        )
        figure = {"metric": f"tokens per second, {name}", "value": row.get("tokens_per_second")}
        found.append({**figure, "unit": "tokens/s", "baseline": "49 % MFU, best peer", **row})
    for row in attention:
        figure = {"metric": f"attention, {row.get('kind')}", "value": row.get("seconds")}
        found.append({**figure, "unit": "s", "baseline": "dense, same run", **row})
    for row in blocks:
        figure = {
            "metric": f"blocks computed, {row['pattern']}, {row['direction']}",
            "value": row["blocks as we order them"],
        }
        found.append({**figure, "unit": "share", "baseline": "raster order", **row})
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats")
    parser.add_argument("--minutes", type=float, help="for all tables: 8 if quick, else 40")
    parser.add_argument("--limit", type=float, default=180, help="seconds for one configuration")
    options = parser.parse_args()
    device = machine()
    minutes = options.minutes or (8 if options.quick else 40)
    ends = time.monotonic() + 60 * minutes
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    print(f"{hardware(name)}\n")
    blocks = print_blocks(read_model("ernie_vilg_10b"))
    attention = print_attention(device, options.limit)
    steps = print_steps(device, options.limit, ends, quick=options.quick)
    write_results("train_step", figures(steps, attention, blocks), device=name)


if __name__ == "__main__":
    main()
