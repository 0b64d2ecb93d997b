"""A whole training step of the 10B shape on one GPU, and of a small shape where there is none.

    python benchmarks/train_step.py            # every row
    python benchmarks/train_step.py --quick    # the most telling rows, under 8 minutes on an H200

Three tables: which blocks of the attention masks are empty (arithmetic), attention alone, and the
step through the real engine with random tokens. MFU counts the model's own operations, what is
computed twice once, over 989 TFLOP/s, the dense bf16 peak of an H100 or H200.

On a CPU the times are those of the process on one thread, which what else the machine does hardly
changes. Every configuration runs in a process of its own, so that one that needs too much memory
or does not compile ends its row and not the table. Writes outputs/benchmarks/train_step.json.
"""

import argparse
import gc
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import (
    ParallelismConfig,
    PretrainConfig,
    TrainingConfig,
)
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.model import block_sparse
from ernie_vilg.model.attention import Attention, attend
from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.storage.files import write_json
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS

PEAK_FLOPS = 989e12
"""Of an H100 or H200, dense bf16 products, from the data sheet."""

BYTES_PER_PARAMETER = 22
"""On one device: weights, gradients, their fp32 sums, fp32 weights, two moments; and a margin."""

BYTES_PER_ACTIVATION = {"none": 36, "selective": 26, "full": 4}
"""Kept per layer, token and unit of hidden_size, in bf16, about."""

MARK = "RESULT "
"""Begins the lines of a measuring process that hold a result."""

Row = dict[str, Any]


def preset(name: str) -> ModelConfig:
    """Return a shape of conf/model."""
    path = Path(__file__).parents[1] / f"conf/model/{name}.yaml"
    return ModelConfig(**dict(OmegaConf.load(path).items()))


def model_shape(device: str) -> ModelConfig:
    """Return the shape that is measured on a kind of device."""
    ten_billion = preset("ernie_vilg_10b")
    if device == "cuda":
        return ten_billion
    small = {"hidden_size": 256, "num_heads": 4, "image_grid_size": 16, "text_vocab_size": 4096}
    return replace(ten_billion, num_layers=4, **small)


# --- The table that needs no device.


def block_shares(config: ModelConfig) -> list[Row]:
    """Return, per pattern and direction, the shares of pairs and of blocks that are computed."""
    rows = []
    for name, row_pattern, pattern in (
        ("full", "raster", Pattern.FULL),
        ("row, raster", "raster", Pattern.ROW),
        ("row, block", "block", Pattern.ROW),
        ("column", "raster", Pattern.COLUMN),
        ("convolution", "raster", Pattern.CONVOLUTION),
    ):
        shape = replace(config, row_pattern=row_pattern)
        for direction in Direction:
            mask = both_masks(shape, pattern)[direction]
            order = torch.arange(config.seq_length)
            if pattern is Pattern.COLUMN:
                order = block_sparse.transpose_grid(order[:, None], shape)[:, 0]
            ours = mask[order][:, order]
            rows.append(
                {
                    "pattern": name,
                    "direction": direction.name.lower().replace("_", "-"),
                    "visible pairs": float(mask.float().mean()),
                    "blocks in raster order": non_empty(mask, block_sparse.BLOCK_SIZE),
                    "blocks as we order them": kept_blocks(shape, pattern, direction),
                    "blocks of 64": non_empty(ours, 64),
                }
            )
    return rows


def non_empty(mask: Tensor, size: int) -> float:
    """Return the share of size x size blocks in which a query sees a key."""
    missing = -len(mask) % size
    blocks = F.pad(mask, (0, missing, 0, missing)).unflatten(1, (-1, size)).unflatten(0, (-1, size))
    return float(blocks.any(dim=3).any(dim=1).float().mean())


def kept_blocks(config: ModelConfig, pattern: Pattern, direction: Direction) -> float:
    """Return the share of blocks that the kernel computes."""
    mask = block_sparse.block_masks(config, pattern, torch.device("cpu"))[direction]
    count = mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()
    return float(count) / mask.kv_indices.shape[-1] ** 2


# --- Attention alone, in a process of its own.


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


def measure_attention(config: ModelConfig, pairs: int) -> Iterator[Row]:
    """Yield the time and memory of each way to attend, forward and backward, in bf16."""
    device = machine()
    for name, attention in attention_kinds(config, device).items():
        try:
            yield {"kind": name, **_one_attention(config, attention, pairs, device)}
        except Exception as error:  # one kind's failure is its row
            yield {"kind": name, "failed": first_line(str(error))}
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _one_attention(
    config: ModelConfig, attention: Callable[..., Tensor], pairs: int, device: str
) -> Row:
    shape = (2, pairs, config.seq_length, config.num_heads, 3, config.head_dim)
    # As the model has them: parts of one projection.
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


# --- A step, in a process of its own.


def measure_step(options: Row) -> Iterator[Row]:
    """Yield the speed of one configuration through the real engine."""
    from ernie_vilg.parallel.engine import build
    from ernie_vilg.parallel.engine.precision import machine_precision
    from ernie_vilg.parallel.layout.groups import build_groups, start_processes

    started = time.monotonic()
    config = pretrain_config(options)
    device = start_processes(Launch(rank=0, local_rank=0, world_size=1), timeout_seconds=300)
    _start_quickly(build, device)
    if options["attention"] == "dense":
        Attention.forward = _dense_forward  # type: ignore[method-assign]
    groups = build_groups(1, 1, device)
    precision = machine_precision("auto", device)
    engine = build.build_engine(config, groups, precision)
    layout = config.parallelism
    batches = [
        random_batch(config.model, layout.micro_batch_size) for _ in range(engine.num_micro_batches)
    ]

    def step() -> None:
        engine.train_batch(batches, learning_rate=1e-5)

    for _ in range(3):  # the second step is the first with all of the optimizer's state
        step()
    wait(device.type)
    reset_peak(device.type)
    compiled = time.monotonic() - started
    repeats, runs = (5, 2) if device.type == "cuda" else (options["repeats"], 1)
    seconds = median_seconds(step, repeats, runs, device.type)
    pairs_per_second = layout.global_batch_size / seconds
    flops = pairs_per_second * training_flops_per_pair(config.model)
    yield {
        "seconds_per_step": seconds,
        "tokens_per_second": pairs_per_second * 2 * config.model.seq_length,
        "flops_per_second": flops,
        "mfu": flops / PEAK_FLOPS,
        "peak_bytes": peak_bytes(device.type),
        "start_seconds": compiled,
        "precision": str(precision).removeprefix("torch."),
    }
    torch.distributed.destroy_process_group()


def pretrain_config(options: Row) -> PretrainConfig:
    """Return the run of a row of the table."""
    shape = model_shape(machine())
    attention = "sparse" if options["attention"] == "sparse" else "full"
    micro_batch = options["micro_batch"]
    return PretrainConfig(
        run_dir="unused",
        model=replace(shape, num_layers=options["layers"], attention=attention),
        data=PretrainDataConfig(token_shards="", text_tokenizer="", image_tokenizer=""),
        parallelism=ParallelismConfig(
            activation_checkpointing=options["checkpointing"],
            micro_batch_size=micro_batch,
            global_batch_size=micro_batch * options["accumulation"],
        ),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=0),
        training=TrainingConfig(steps=1),
        checkpoint=CheckpointConfig(every=1),
        compile_blocks=options["compile"],
    )


def _start_quickly(build: Any, device: torch.device) -> None:
    """Draw weights on the device: ours, the same on every layout, take a second per layer."""
    build_transformer = build.build_transformer

    def on_device(*arguments: Any) -> nn.Sequential:
        with device:
            return build_transformer(*arguments)

    def initialize(parameters: Any, config: ModelConfig, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            for _, parameter in parameters:
                # Not zeros: products of them take less power, and so less time.
                parameter.normal_(0.0, config.initializer_std)

    build.build_transformer = on_device
    build.initialize = initialize


def _dense_forward(self: Attention, hidden: Tensor) -> Tensor:
    """Attend through SDPA with the dense mask, which the model does on a CPU alone."""
    query, key, value = self._project(hidden, *self.mask.shape[:2])
    return self._merge(attend(query, key, value, self.mask, self.pb_relax))


def random_batch(config: ModelConfig, pairs: int) -> Batch:
    """Return pairs without padding, on the CPU."""
    text = torch.randint(NUM_SPECIAL_IDS, config.text_vocab_size, (pairs, config.text_length))
    return Batch(
        text=text, codes=torch.randint(config.codebook_size, (pairs, config.num_image_tokens))
    )


# --- Measuring.


def machine() -> str:
    """Return what there is: cuda or cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(device: str) -> None:
    """Wait for the device to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> int:
    """Start counting the peak of memory again; return the bytes in use now."""
    if device != "cuda":
        return 0  # a process's peak cannot be set back
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes(device: str) -> int:
    """Return the peak: allocated on a GPU, resident of the whole process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def median_seconds(run: Callable[[], None], repeats: int, runs: int, device: str) -> float:
    """Return the median over repeats of the time of one run; only repeats are waited for."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    times = []
    for _ in range(repeats):
        started = clock()
        for _ in range(runs):
            run()
        wait(device)
        times.append((clock() - started) / runs)
    return statistics.median(times)


# --- The tables.


def in_a_process(task: Row, limit_seconds: float) -> list[Row]:
    """Measure in a process of its own, and return its results, or what went wrong."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, __file__, "--measure", json.dumps(task)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # its compilers end with it
    )
    late = False
    try:
        output, errors = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
    lines = output.splitlines()
    rows = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    if late:
        rows.append({"failed": f"not done after {limit_seconds:.0f} s"})
    elif process.returncode:
        rows.append({"failed": reason_of(errors, process.returncode)})
    return rows


def reason_of(errors: str, returncode: int) -> str:
    """Return the line of a traceback that says what happened."""
    lines = [line for line in errors.splitlines() if line.strip()]
    for line in reversed(lines):
        if "Error" in line or "Exception" in line:
            return first_line(line)
    return first_line(lines[-1]) if lines else f"ended with {returncode}"


def first_line(text: str) -> str:
    """Return what fits into a table."""
    return (text.strip().splitlines() or ["no message"])[0][:90]


def layers_that_fit(config: ModelConfig, checkpointing: str, micro_batch: int) -> int:
    """Return how many of the model's layers this GPU holds."""
    free, _ = torch.cuda.mem_get_info()
    layer = num_parameters(replace(config, num_layers=2)) - num_parameters(
        replace(config, num_layers=1)
    )
    outside = num_parameters(replace(config, num_layers=1)) - layer
    tokens = 2 * micro_batch * config.seq_length
    per_layer = (
        layer * BYTES_PER_PARAMETER
        + tokens * config.hidden_size * BYTES_PER_ACTIVATION[checkpointing]
    )
    logits = 12 * micro_batch * config.num_image_tokens * config.codebook_size
    rest = outside * BYTES_PER_PARAMETER + logits + (4 << 30)
    return max(1, min(config.num_layers, int((0.95 * free - rest) / per_layer)))


def step_rows(device: str, *, quick: bool) -> list[Row]:
    """Return the configurations, the most telling first."""
    usual: Row = {
        "layers": 6 if device == "cuda" else 4,
        "attention": "sparse",
        "checkpointing": "none",
        "compile": device == "cuda",
        "micro_batch": 4 if device == "cuda" else 2,
        "accumulation": 4 if device == "cuda" else 1,
        "repeats": 3 if quick else 5,
    }
    changes: list[Row] = [{}]
    if device == "cuda":
        layers = layers_that_fit(model_shape(device), "none", 4)
        changes = [{"layers": layers}, {}]
    other = device != "cuda"
    changes += [{"attention": "full"}, {"attention": "dense"}]
    changes += [{"compile": other}, {"checkpointing": "full"}, {"checkpointing": "selective"}]
    sizes = (16, 1, 8, 2) if device == "cuda" else (1, 4)
    changes += [{"micro_batch": size} for size in (sizes[:2] if quick else sizes)]
    if not quick:
        changes += [{"checkpointing": kind, "compile": other} for kind in ("selective", "full")] + [
            {"attention": kind, "compile": other} for kind in ("full", "dense")
        ]
    if device == "cpu":  # SDPA is what the model uses there
        changes = [change for change in changes if change.get("attention") != "dense"]
    return [{**usual, **change} for change in changes]


def print_blocks(config: ModelConfig) -> list[Row]:
    """Print and return the table of blocks."""
    size = block_sparse.BLOCK_SIZE
    print(f"Blocks of {size} x {size} that are computed, {config.seq_length} slots:\n")
    print(
        "| pattern | direction | visible pairs | blocks, raster order | blocks, our order | "
        "blocks of 64, our order |\n|---|---|---|---|---|---|"
    )
    rows = block_shares(config)
    for row in rows:
        shares = [f"{100 * value:.1f} %" for value in row.values() if isinstance(value, float)]
        print("| " + " | ".join([row["pattern"], row["direction"], *shares]) + " |")
    return rows


def print_attention(device: str, limit_seconds: float) -> list[Row]:
    """Measure, print and return the table of attention alone."""
    pairs = 4 if device == "cuda" else 1
    config = replace(model_shape(device), num_layers=1)
    print(
        f"\nAttention alone, bf16, {2 * pairs} sequences of {config.seq_length}, "
        f"{config.num_heads} heads of {config.head_dim}, forward and backward:\n"
    )
    print("| attention | ms | peak MiB |\n|---|---|---|")
    rows = in_a_process({"section": "attention", "pairs": pairs}, limit_seconds)
    for row in rows:
        name = row.get("kind", "the rest")
        if "failed" in row:
            print(f"| {name} | {row['failed']} | |")
            continue
        peak = f"{row['bytes'] / 2**20:,.0f}" if device == "cuda" else ""
        print(f"| {name} | {1000 * row['seconds']:.2f} | {peak} |")
    return rows


def print_steps(device: str, limit_seconds: float, ends: float, *, quick: bool) -> list[Row]:
    """Measure, print and return the table of steps."""
    config = model_shape(device)
    speed = "MFU" if device == "cuda" else "GFLOP/s"
    print(
        f"\nA training step, hidden {config.hidden_size}, {config.num_heads} heads, "
        f"{config.seq_length} slots:\n"
    )
    print(
        "| layers | attention | checkpointing | compiled | micro-batch x passes | ms per step | "
        f"tokens/s | {speed} | peak GiB |\n|---|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for options in step_rows(device, quick=quick):
        left = ends - time.monotonic()
        if left < 30:
            print("| no time left for the rest: raise --minutes |" + " |" * 8)
            break
        row = measured(options, min(limit_seconds, left))
        while "out of memory" in row.get("failed", "") and row["layers"] > 6:
            print(step_line(row, device), flush=True)
            row = measured({**options, "layers": row["layers"] * 3 // 4}, limit_seconds)
        print(step_line(row, device), flush=True)
        rows.append(row)
    return rows


def measured(options: Row, limit_seconds: float) -> Row:
    """Return a configuration with its results."""
    results = in_a_process({"section": "step", **options}, limit_seconds)
    return {**options, **{key: value for part in results for key, value in part.items()}}


def step_line(row: Row, device: str) -> str:
    """Return a row of the table of steps."""
    cells = [
        str(row["layers"]),
        row["attention"],
        row["checkpointing"],
        "yes" if row["compile"] else "no",
        f"{row['micro_batch']} x {row['accumulation']}",
    ]
    if "mfu" not in row:
        return "| " + " | ".join([*cells, row.get("failed", "no result"), "", "", ""]) + " |"
    speed = f"{100 * row['mfu']:.1f} %"
    if device == "cpu":
        speed = f"{row['flops_per_second'] / 1e9:.0f}"
    cells += [
        f"{1000 * row['seconds_per_step']:,.0f}",
        f"{row['tokens_per_second']:,.0f}",
        speed,
        f"{row['peak_bytes'] / 2**30:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def figures(steps: list[Row], attention: list[Row], blocks: list[Row]) -> list[Row]:
    """Return what goes into the file: one figure per row, and the row."""
    found: list[Row] = []
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
    """Print the tables, or measure what a parent process asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats")
    parser.add_argument("--minutes", type=float, help="for all tables: 8 if quick, else 40")
    parser.add_argument("--limit", type=float, default=180, help="seconds for one configuration")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        task = options.measure
        if machine() == "cpu":
            torch.set_num_threads(1)
        if task["section"] == "attention":
            rows = measure_attention(model_shape(machine()), task["pairs"])
        else:
            rows = measure_step(task)
        for row in rows:
            print(MARK + json.dumps(row), flush=True)
        return
    device = machine()
    minutes = options.minutes or (8 if options.quick else 40)
    ends = time.monotonic() + 60 * minutes
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    blocks = print_blocks(preset("ernie_vilg_10b"))
    attention = print_attention(device, options.limit)
    steps = print_steps(device, options.limit, ends, quick=options.quick)
    content = figures(steps, attention, blocks)
    write_json(Path("outputs/benchmarks/train_step.json"), content)


if __name__ == "__main__":
    main()
