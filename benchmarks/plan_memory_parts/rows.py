"""The layouts whose memory is measured, and their model."""

from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.support.models import random_run
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, TrainingConfig

MODEL = ModelConfig(
    hidden_size=384,
    num_layers=6,
    num_heads=6,
    text_vocab_size=4096,
    text_length=16,
    codebook_size=2048,
    image_grid_size=12,
)
"""15.4 M parameters."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    """Name of the layout."""
    world_size: int
    """Number of ranks."""
    precision: str = "fp32"
    """Number format of weights and activations."""
    global_batch_size: int = 16
    """Pairs per step."""
    micro_batch_size: int = 4
    """Pairs per rank and pass."""
    layout: dict[str, Any] = field(default_factory=dict)
    """Other settings of `ParallelismConfig`."""
    model: ModelConfig = MODEL
    """Shape of the model."""
    ema_decay: float = 0.0
    """Decay of the average of the weights; 0 keeps none."""

    @property
    def config(self) -> PretrainConfig:
        """Settings of the run."""
        layout = ParallelismConfig(
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            **self.layout,
        )
        training = TrainingConfig(steps=100, ema_decay=self.ema_decay)
        return random_run(self.model, layout, precision=self.precision, training=training)


def _row(name: str, world_size: int, precision: str = "fp32", **settings: Any) -> Row:
    own = {key: settings.pop(key) for key in ("micro_batch_size", "ema_decay") if key in settings}
    return Row(name=name, world_size=world_size, precision=precision, layout=settings, **own)


ROWS = [
    _row("one rank, fp32", 1),
    _row("one rank, bf16", 1, "bf16"),
    _row(
        "micro-batch of 8, selective", 1, micro_batch_size=8, activation_checkpointing="selective"
    ),
    _row("full checkpointing", 1, "bf16", micro_batch_size=8, activation_checkpointing="full"),
    _row("data 2, ZeRO 1, bf16", 2, "bf16"),
    _row("data 2, ZeRO 2, bf16", 2, "bf16", zero_stage=2),
    _row("data 2, ZeRO 3, fp32", 2, zero_stage=3),
    _row("data 2, ZeRO 2, offload", 2, "bf16", zero_stage=2, offload_optimizer=True),
    _row("tensor 2", 2, tensor_parallel_size=2),
    _row(
        "tensor 2, sequence parallel, selective",
        2,
        "bf16",
        tensor_parallel_size=2,
        sequence_parallel=True,
        activation_checkpointing="selective",
    ),
    _row("pipeline 2, bf16", 2, "bf16", pipeline_parallel_size=2),
    _row("pipeline 2 x data 2, full", 4, pipeline_parallel_size=2, activation_checkpointing="full"),
    _row("pipeline 4, bf16", 4, "bf16", micro_batch_size=2, pipeline_parallel_size=4),
    _row("pipeline 3, 16 micro-batches", 3, micro_batch_size=1, pipeline_parallel_size=3),
]

_LARGE = replace(
    MODEL,
    hidden_size=2048,
    num_layers=12,
    num_heads=16,
    text_vocab_size=32768,
    text_length=64,
    codebook_size=8192,
    image_grid_size=32,
)
"""0.77 billion parameters, 1,088 slots."""


def _gpu_row(name: str, **settings: Any) -> Row:
    return replace(_row(name, 1, "bf16", **settings), model=_LARGE)


GPU_ROWS = [
    _gpu_row("micro-batch of 2", micro_batch_size=2),
    _gpu_row("micro-batch of 8", micro_batch_size=8),
    _gpu_row("selective", micro_batch_size=8, activation_checkpointing="selective"),
    _gpu_row("full", micro_batch_size=16, activation_checkpointing="full"),
    _gpu_row("ZeRO 2", zero_stage=2),
    replace(_gpu_row("sparse"), model=replace(_LARGE, attention="sparse")),
]
"""Rows for one GPU of 80 GB."""


def row_named(name: str) -> Row:
    """Return the row of a name."""
    return next(row for row in [*ROWS, *GPU_ROWS] if row.name == name)
