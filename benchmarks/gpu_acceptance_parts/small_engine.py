"""A small sparse model in the real engine, for probes that need no size."""

import gc
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.support.measurer import Task
from benchmarks.support.models import random_batch, random_run
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, TrainingConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.settings import machine_precision
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes

LEARNING_RATE = 1e-3
_GROUPS: list[Groups] = []


class SmallEngine(NamedTuple):
    """An engine and its run."""

    engine: Any
    config: PretrainConfig


def small_model() -> ModelConfig:
    """Return the shape: that of the 10B in small on a GPU, smaller on a CPU."""
    has_cuda = torch.cuda.is_available()
    return ModelConfig(
        hidden_size=256 if has_cuda else 64,
        num_layers=4 if has_cuda else 3,
        num_heads=4,
        text_vocab_size=256,
        text_length=64 if has_cuda else 16,
        codebook_size=256,
        image_grid_size=16 if has_cuda else 8,
        convolution_size=11 if has_cuda else 5,
        attention="sparse",
    )


def small_engine(task: Task) -> SmallEngine:
    """Build the engine of a task; earlier engines of this process are freed first."""
    torch._dynamo.reset()
    gc.collect()  # DeepSpeed's engines are cycles of references
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    layout = ParallelismConfig(
        micro_batch_size=2, global_batch_size=4, **task.get("parallelism", {})
    )
    config = random_run(
        small_model(),
        layout,
        precision=task.get("precision", "bf16"),
        compile_blocks=task.get("compile", False),
        linear_precision=task.get("linear_precision", "same"),
        training=TrainingConfig(steps=1, ema_decay=task.get("ema_decay", 0.0)),
    )
    groups = process_groups()
    engine = build_engine(config, groups, machine_precision(config.precision, groups.device))
    return SmallEngine(engine, config)


def process_groups() -> Groups:
    """Return the groups of this process, alone; made once."""
    if not dist.is_initialized():
        start_processes(Launch(rank=0, local_rank=0, world_size=1), timeout_seconds=120)
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        _GROUPS.append(build_groups(1, 1, device))
    return _GROUPS[0]


def micro_batches(small: SmallEngine, step: int) -> list[Batch]:
    """Return the micro-batches of a step, the same in every process."""
    count, size = small.engine.num_micro_batches, small.config.parallelism.micro_batch_size
    return [random_batch(small.config.model, size, step * count + index) for index in range(count)]


def losses_of_steps(small: SmallEngine, first: int, last: int) -> list[float]:
    """Take steps `first` to before `last`; return the loss of each."""
    return [
        float(small.engine.train_batch(micro_batches(small, step), LEARNING_RATE)[0])
        for step in range(first, last)
    ]
