"""Speed of a training step through the real engine, on random tokens."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.support.measurer import Result
from benchmarks.support.models import LEARNING_RATE, random_batch, random_run
from benchmarks.train_step_parts.device import (
    machine,
    median_seconds,
    model_shape,
    peak_bytes,
    reset_peak,
    wait,
)
from benchmarks.train_step_parts.profile import profile_step
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.model.attention import Attention, attend
from ernie_vilg.model.flops import training_flops_per_pair

PEAK_FLOPS = 989e12
"""Dense bf16 peak of an H100 or H200, from the data sheet."""
SETTINGS = ("linear_precision",)
"""Settings of `PretrainConfig` that a row may have."""


def measure_step(options: Result) -> Iterator[Result]:
    """Yield the speed of one configuration through the real engine.

    Args:
        options: a row of the table; with `trace`, the path of a gzipped trace of one step, also
            yields the kernels that take most of it.
    """
    started = time.monotonic()
    config, device = pretrain_config(options), machine()
    step, precision = _prepare(config, is_dense=options["attention"] == "dense")
    for _ in range(3):  # from the second step on, all of the optimizer's state exists
        step()
    wait(device)
    reset_peak(device)
    compiled = time.monotonic() - started
    runs = 2 if device == "cuda" else 1
    seconds = median_seconds(step, options["repeats"], runs, device)
    pairs_per_second = config.parallelism.global_batch_size / seconds
    flops = pairs_per_second * training_flops_per_pair(config.model)
    yield {
        "seconds_per_step": seconds,
        "tokens_per_second": pairs_per_second * 2 * config.model.seq_length,
        "flops_per_second": flops,
        "mfu": flops / PEAK_FLOPS,
        "peak_bytes": peak_bytes(device),
        "start_seconds": compiled,
        "precision": str(precision).removeprefix("torch."),
    }
    if "trace" in options:
        yield {"kernels": profile_step(step, Path(options["trace"]))}
    torch.distributed.destroy_process_group()


def _prepare(config: PretrainConfig, *, is_dense: bool) -> tuple[Callable[[], None], torch.dtype]:
    """Build the engine; return a function that takes a step, and the precision."""
    from ernie_vilg.parallel.engine import build
    from ernie_vilg.parallel.engine.settings import machine_precision
    from ernie_vilg.parallel.layout.groups import build_groups, start_processes

    device = start_processes(Launch(rank=0, local_rank=0, world_size=1), timeout_seconds=300)
    _start_quickly(build, device)
    if is_dense:
        Attention.forward = _dense_forward  # type: ignore[method-assign]
    precision = machine_precision("auto", device)
    engine = build.build_engine(config, build_groups(1, 1, device), precision)
    size = config.parallelism.micro_batch_size
    batches = [random_batch(config.model, size, seed) for seed in range(engine.num_micro_batches)]
    return lambda: engine.train_batch(batches, LEARNING_RATE), precision


def pretrain_config(options: Result) -> PretrainConfig:
    """Return the run of a row of the table."""
    micro_batch = options["micro_batch"]
    layout = ParallelismConfig(
        activation_checkpointing=options["checkpointing"],
        micro_batch_size=micro_batch,
        global_batch_size=micro_batch * options["accumulation"],
    )
    settings = {key: options[key] for key in SETTINGS if key in options}
    attention = "sparse" if options["attention"] == "sparse" else "full"
    shape = replace(model_shape(machine()), num_layers=options["layers"], attention=attention)
    return random_run(shape, layout, compile_blocks=options["compile"], **settings)


def _start_quickly(build: Any, device: torch.device) -> None:
    """Draw weights on the device: our own initialization takes a second per layer."""
    build_transformer = build.build_transformer

    def on_device(*arguments: Any) -> nn.Sequential:
        with device:
            return build_transformer(*arguments)

    def initialize(parameters: Any, config: ModelConfig, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            for _, parameter in parameters:
                # Zeros would use less power and therefore less time.
                parameter.normal_(0.0, config.initializer_std)

    build.build_transformer = on_device
    build.initialize = initialize


def _dense_forward(self: Attention, hidden: Tensor) -> Tensor:
    """Attend through SDPA with the dense mask, as the model does on a CPU only."""
    query, key, value = self._project(hidden, *self.mask.shape[:2])
    return self._merge(attend(query, key, value, self.mask, self.pb_relax))
