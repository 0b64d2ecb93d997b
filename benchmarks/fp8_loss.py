"""Losses of a run with 8-bit products, with bfloat16 and with float32.

    python benchmarks/fp8_loss.py

The programs in launch/ draw the built-in scenes and train tokenizers on them once. Then three
processes train the quickstart's model with its settings through the real engine, from equal weights
on equal batches: in bfloat16, with `linear_precision=fp8`, and in float32. A CPU rounds the factors
as a GPU does; only the order of additions differs. Prints the mean loss of each window of steps.
Over all steps the mean loss of 8-bit products must be within 1 % of bfloat16's. The difference of
bfloat16 and float32 shows how far rounding alone drives apart two runs whose loss falls steeply.
Writes outputs/benchmarks/fp8_loss.json; `--read` prints it again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.reconstructor_parts.rows import Settings
from benchmarks.reconstructor_parts.training import make_data, make_tokens
from benchmarks.support.results import (
    OUTPUTS,
    ROOT,
    Requirement,
    output_path,
    print_requirements,
    write_results,
)
from benchmarks.support.tables import header, row
from ernie_vilg.storage.json_files import read_json

RUNS = {
    "bf16": ("precision=bf16",),
    "fp8": ("precision=bf16", "linear_precision=fp8"),
    "fp32": ("precision=fp32",),
}
"""Options of each run by its name."""
NAME = "fp8_loss"
WINDOW = 50
"""Number of steps of a window."""
LIMIT = 0.01
"""Smallest relative difference of the mean losses over all steps that is too large."""
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
    """Make the data, train all runs, compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--data", type=Path, default=OUTPUTS / NAME)
    parser.add_argument("--train", choices=RUNS, help="train one run and print its losses")
    parser.add_argument("--read", action="store_true", help="print the last results again")
    options = parser.parse_args()
    if options.read:
        report(read_json(output_path(NAME))["results"])
        return
    folder: Path = options.data.resolve()
    if options.train:
        print(json.dumps(train(folder, options.train, options.steps)))
        return
    make_data(folder, DATA)
    make_tokens(folder, 0, DATA)
    processes = {name: _start(folder, name, options.steps) for name in RUNS}
    losses = {name: _losses(process) for name, process in processes.items()}
    write_results(NAME, losses)
    report(losses)


def report(losses: Mapping[str, Sequence[float]]) -> None:
    """Print mean losses by window, and whether those of 8-bit products are near enough.

    Args:
        losses: loss of every step by name of the run.
    """
    plain, fp8, fp32 = (losses[name] for name in RUNS)
    print(header(("steps", *RUNS, "fp8 to bf16", "fp32 to bf16")))
    starts = range(0, len(plain), WINDOW)
    for window in [*(slice(start, start + WINDOW) for start in starts), slice(0, len(plain))]:
        means = [statistics.mean(run[window]) for run in (plain, fp8, fp32)]
        steps = f"{window.start + 1}-{min(window.stop, len(plain))}"
        apart = (mean / means[0] - 1 for mean in means[1:])
        print(row((steps, *map("{:.4f}".format, means), *map("{:+.2%}".format, apart))))
    difference = abs(statistics.mean(fp8) / statistics.mean(plain) - 1)
    print_requirements(
        [
            Requirement(
                what="difference of the mean losses of fp8 and bf16",
                value=100 * difference,
                bound=100 * LIMIT,
                unit="%",
                is_lower_better=True,
            )
        ]
    )


def _start(folder: Path, name: str, steps: int) -> "subprocess.Popen[str]":
    words = (sys.executable, "benchmarks/fp8_loss.py", f"--train={name}")
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


def train(folder: Path, name: str, steps: int) -> list[float]:
    """Return the loss of every step of one run, on this process alone."""
    from ernie_vilg.config.launch import Launch
    from ernie_vilg.data.sequence.quarantine import Quarantine
    from ernie_vilg.parallel.engine.build import build_engine
    from ernie_vilg.parallel.engine.settings import machine_precision
    from ernie_vilg.parallel.layout.groups import build_groups, start_processes
    from ernie_vilg.preparation.data_order import token_sequence
    from ernie_vilg.preparation.lineage import check_lineage
    from ernie_vilg.runs.schedule import learning_rate_at
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
            *RUNS[name],
        ],
    )
    device = start_processes(Launch(rank=0, local_rank=0, world_size=1), timeout_seconds=300)
    groups = build_groups(1, 1, device)
    engine = build_engine(config, groups, machine_precision(config.precision, device))
    lineage = check_lineage(config.data, config.model)
    sequence = token_sequence(config, lineage, Quarantine(), with_pixels=False)
    batches = ReplicaBatches(config, sequence, groups)
    losses = []
    for step in range(1, steps + 1):
        learning_rate = learning_rate_at(step, config.training.steps, config.optimizer)
        found = engine.train_batch(batches.at(step), learning_rate)
        losses.append(float(engine.mean_losses(found)[0]))
        if step % 25 == 0:
            print(f"{name}: step {step}, loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
    batches.close()
    return losses


if __name__ == "__main__":
    main()
