"""Loss of a run with 8-bit products against the same run in bfloat16.

    python benchmarks/fp8_loss.py

The programs in launch/ draw the built-in scenes and train tokenizers on them once. Then two
processes train the quickstart's model with its settings through the real engine, one with
`linear_precision=fp8`, from equal weights on equal batches. A CPU rounds the factors as a GPU does;
only the order of additions differs. Prints the mean loss of each window of steps; no window may
differ by 1 %. Writes outputs/benchmarks/fp8_loss.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.reconstructor_parts.rows import Settings
from benchmarks.reconstructor_parts.training import make_data, make_tokens
from benchmarks.support.results import (
    OUTPUTS,
    ROOT,
    Requirement,
    print_requirements,
    write_results,
)
from benchmarks.support.tables import header, row

PRECISIONS = ("same", "fp8")
WINDOW = 50
"""Number of steps of a window."""
LIMIT = 0.01
"""Smallest relative difference of a window's mean loss that is too large."""
DATA = Settings(
    seeds=1,
    prediction_seeds=0,
    steps=0,
    tokenizer_steps=600,
    codebook_size=512,
    patch_size=8,
    train_scenes=16_384,
    held_out_scenes=200,
)
"""Sizes of the quickstart's tokenizers, and pairs for 512 steps of 32."""


def main() -> None:
    """Make the data, train both runs, compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--data", type=Path, default=OUTPUTS / "fp8_loss")
    parser.add_argument("--train", choices=PRECISIONS, help="train one run and print its losses")
    options = parser.parse_args()
    folder: Path = options.data.resolve()
    if options.train:
        print(json.dumps(train(folder, options.train, options.steps)))
        return
    make_data(folder, DATA)
    make_tokens(folder, 0, DATA)
    runs = [_start(folder, precision, options.steps) for precision in PRECISIONS]
    losses = [_losses(run) for run in runs]
    report(*losses)
    write_results(
        "fp8_loss", {"steps": options.steps, **dict(zip(PRECISIONS, losses, strict=True))}
    )


def report(plain: list[float], fp8: list[float]) -> None:
    """Print the mean losses by window, and whether their differences are small enough."""
    print(header(("steps", "bf16", "fp8", "difference")))
    differences = []
    for start in range(0, len(plain), WINDOW):
        before, after = (statistics.mean(run[start : start + WINDOW]) for run in (plain, fp8))
        differences.append(after / before - 1)
        steps = f"{start + 1}-{min(start + WINDOW, len(plain))}"
        print(row((steps, f"{before:.4f}", f"{after:.4f}", f"{differences[-1]:+.2%}")))
    print_requirements(
        [
            Requirement(
                what="largest difference of a window's mean loss",
                value=100 * max(map(abs, differences)),
                bound=100 * LIMIT,
                unit="%",
                is_lower_better=True,
            )
        ]
    )


def _start(folder: Path, precision: str, steps: int) -> "subprocess.Popen[str]":
    words = (sys.executable, "benchmarks/fp8_loss.py", f"--train={precision}")
    sizes = (f"--steps={steps}", f"--data={folder}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*words, *sizes], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def _losses(run: "subprocess.Popen[str]") -> list[float]:
    output, _ = run.communicate()
    if run.returncode:
        raise RuntimeError(f"{run.args} ended with {run.returncode}")
    losses: list[float] = json.loads(output.splitlines()[-1])
    return losses


def train(folder: Path, precision: str, steps: int) -> list[float]:
    """Return the loss of every step of one run, on this process alone."""
    import torch

    from ernie_vilg.config.launch import Launch
    from ernie_vilg.data.sequence.quarantine import Quarantine
    from ernie_vilg.parallel.engine.build import build_engine
    from ernie_vilg.parallel.layout.groups import build_groups, start_processes
    from ernie_vilg.runs.schedule import learning_rate_at
    from ernie_vilg.training.data_order import token_sequence
    from ernie_vilg.training.lineage import check_lineage
    from ernie_vilg.training.replica_batches import ReplicaBatches
    from launch.support.composition import compose_program

    config = compose_program(
        "pretrain",
        [
            "experiment=quickstart",
            f"run_dir={folder}/run",
            f"data.token_shards={folder}/seed_0/token_shards",
            f"data.text_tokenizer={folder}/text_tokenizer",
            f"data.image_tokenizer={folder}/seed_0/image_tokenizer/weights",
            "parallelism.micro_batch_size=32",
            f"linear_precision={precision}",
        ],
    )
    device = start_processes(Launch(rank=0, local_rank=0, world_size=1), timeout_seconds=300)
    groups = build_groups(1, 1, device)
    engine = build_engine(config, groups, torch.bfloat16)
    lineage = check_lineage(config.data, config.model)
    sequence = token_sequence(config, lineage, Quarantine(), with_pixels=False)
    batches = ReplicaBatches(config, sequence, groups)
    losses = []
    for step in range(1, steps + 1):
        learning_rate = learning_rate_at(step, config.training.steps, config.optimizer)
        found = engine.train_batch(batches.at(step), learning_rate)
        losses.append(float(engine.mean_losses(found)[0]))
        if step % 25 == 0:
            print(f"{precision}: step {step}, loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
    batches.close()
    return losses


if __name__ == "__main__":
    main()
