"""The rows of the parity table, and their computation.

A row is a layout of up to 8 processes and a variant of the run. It is equal to one process if
losses and gradient norms of 4 steps are, to 1e-5 in float32.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig, ObjectiveConfig, ReconstructorConfig
from ernie_vilg.config.optimizer import OptimizerConfig, ParameterGroupConfig
from ernie_vilg.config.pretrain import (
    ParallelismConfig,
    PretrainConfig,
    TrainingConfig,
)
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.settings import machine_precision
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.vocabulary import text_slots
from tests.distributed import run_distributed
from tests.model import tiny

STEPS = 4
RELATIVE_TOLERANCE = 1e-5  # sums in another order, in float32
LEARNING_RATE = 1e-3

MODEL = ModelConfig(
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    text_vocab_size=48,
    text_length=6,
    codebook_size=40,
    image_grid_size=4,
    convolution_size=3,
)
DECODER = replace(tiny.DECODER, image_size=16, codebook_size=MODEL.codebook_size)

History = list[tuple[list[float], float]]
"""Losses and gradient norm of each step."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model and the options of a layout."""

    attention: str = "full"
    reconstructor: str = "two_stage"
    checkpointing: str = "none"
    sequence_parallel: bool = False
    zero: int = 1
    offload: bool = False
    extra: str = ""
    """Name of further settings of the model in `EXTRAS`."""
    has_groups: bool = False
    """Whether the optimizer has `GROUPS`."""

    @property
    def computation(self) -> tuple[ModelConfig, bool]:
        """Return what the losses depend on; layouts with equal ones must compute the same."""
        return self.model, self.has_groups

    @property
    def model(self) -> ModelConfig:
        """Return the model."""
        reconstructor = ReconstructorConfig(
            kind=self.reconstructor,
            decoder=DECODER if self.reconstructor == "end_to_end" else None,
        )
        return replace(
            MODEL, attention=self.attention, reconstructor=reconstructor, **EXTRAS[self.extra]
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    tensor: int
    pipeline: int
    data: int
    variant: Variant = field(default_factory=Variant)

    @property
    def layout(self) -> tuple[int, int, int]:
        """Return (tensor, pipeline, data)."""
        return self.tensor, self.pipeline, self.data

    @property
    def id(self) -> str:
        """Return the row's name."""
        variant = self.variant
        words = [
            f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}",
            f"ZeRO {variant.zero}",
            f"{variant.attention} attention",
            variant.reconstructor.replace("_", " "),
            f"checkpointing {variant.checkpointing}",
        ]
        words += ["sequence parallel"] if variant.sequence_parallel else []
        words += ["offload"] if variant.offload else []
        words += ["groups"] if variant.has_groups else []
        return ", ".join(words + ([variant.extra] if variant.extra else []))


EXTRAS: dict[str, dict[str, Any]] = {
    "": {},
    "tied embeddings": {"tied_embeddings": True},
    "all norms": {
        "qk_norm": True,
        "sandwich_norm": True,
        "residual_scaling": "branch",
        "text_padding": "repeated",
        "segment_std": 0.0,
    },
    "PB-relax": {"pb_relax": 32.0},
    "dropout": {"dropout": 0.2},
}

GROUPS = (
    ParameterGroupConfig(pattern="0.*", learning_rate_factor=0.1),
    ParameterGroupConfig(pattern="*.bias", learning_rate_factor=3.0, weight_decay=0.5),
    ParameterGroupConfig(pattern="2.attention.output.*", weight_decay=20.0),
    ParameterGroupConfig(pattern="3.*", learning_rate_factor=5.0),
)
"""Groups that are on one stage, on all of them, and of a single matrix; the last is cut in two."""

LAYOUTS = [
    (tensor, pipeline, data)
    for tensor in (1, 2, 4)
    for pipeline in (1, 2, 4)
    for data in (1, 2)
    if 1 < tensor * pipeline * data <= 8
]
FAST_LAYOUTS = [(1, 2, 1), (2, 1, 2), (2, 2, 1)]
"""Layouts of `make test`; `make test-parallel` runs all."""


def rows_of(layout: tuple[int, int, int]) -> list[Row]:
    """Return the variants to test a layout with."""
    tensor, pipeline, data = layout
    shares = tensor > 1
    variants = [
        Variant(),
        Variant(attention="sparse", checkpointing="full"),
        Variant(
            attention="sparse",
            reconstructor="end_to_end",
            checkpointing="selective",
            sequence_parallel=shares,
        ),
        Variant(reconstructor="end_to_end", checkpointing="full", sequence_parallel=shares),
        Variant(extra="tied embeddings", sequence_parallel=shares),
        Variant(extra="all norms", attention="sparse", sequence_parallel=shares),
        Variant(offload=True),
        Variant(has_groups=True, extra="tied embeddings", sequence_parallel=shares),
    ]
    if pipeline == 1:
        variants += [
            Variant(zero=2, attention="sparse", reconstructor="end_to_end"),
            Variant(zero=2, checkpointing="selective", sequence_parallel=shares),
            Variant(zero=3, checkpointing="full", attention="sparse"),
            Variant(
                zero=3,
                reconstructor="end_to_end",
                checkpointing="selective",
                sequence_parallel=shares,
            ),
            Variant(zero=3, extra="tied embeddings", sequence_parallel=shares),
            Variant(zero=2, extra="tied embeddings", has_groups=True),
            Variant(zero=3, extra="tied embeddings", has_groups=True),
        ]
    if data == 1 and pipeline == 1:
        variants += [Variant(extra="dropout"), Variant(extra="dropout", checkpointing="full")]
    if layout == (2, 2, 2):
        variants += [
            Variant(
                attention=attention,
                reconstructor=reconstructor,
                checkpointing=checkpointing,
                sequence_parallel=sequence_parallel,
            )
            for attention in ("full", "sparse")
            for reconstructor in ("two_stage", "end_to_end")
            for checkpointing in ("none", "selective", "full")
            for sequence_parallel in (False, True)
        ]
        variants.append(Variant(extra="PB-relax"))
    unique = list(dict.fromkeys(variants))
    return [Row(tensor=tensor, pipeline=pipeline, data=data, variant=each) for each in unique]


def config_of(row: Row) -> PretrainConfig:
    """Return the run of a row."""
    variant = row.variant
    return PretrainConfig(
        run_dir="unused",
        precision="fp32",
        model=variant.model,
        objective=ObjectiveConfig(z_loss_weight=1e-2),
        data=PretrainDataConfig(token_shards="", text_tokenizer="", image_tokenizer=""),
        parallelism=ParallelismConfig(
            tensor_parallel_size=row.tensor,
            pipeline_parallel_size=row.pipeline,
            zero_stage=variant.zero,
            sequence_parallel=variant.sequence_parallel,
            activation_checkpointing=variant.checkpointing,
            offload_optimizer=variant.offload,
            micro_batch_size=2,
            global_batch_size=8,
        ),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            gradient_clipping=0.5,
            groups=GROUPS if variant.has_groups else (),
        ),
        training=TrainingConfig(steps=STEPS),
        checkpoint=CheckpointConfig(every=STEPS),
    )


def global_batch(step: int, size: int) -> Batch:
    """Return captions of different lengths, for which means of micro-batch means would be wrong."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(1, 7, (size,), generator=generator).tolist()
    pieces = torch.randint(4, MODEL.text_vocab_size, (size, 6), generator=generator).tolist()
    text = [
        text_slots(ids[:length], MODEL.text_length)
        for ids, length in zip(pieces, lengths, strict=True)
    ]
    codes = torch.randint(
        0, MODEL.codebook_size, (size, MODEL.num_image_tokens), generator=generator
    )
    image = (size, 3, DECODER.image_size, DECODER.image_size)
    pixels = torch.randint(0, 256, image, generator=generator, dtype=torch.uint8)
    return Batch(text=torch.tensor(text), codes=codes, pixels=pixels)


def train_all(launch: Launch, configs: Sequence[PretrainConfig]) -> list[History]:
    """Train runs of one layout one after another."""
    device = start_processes(launch, timeout_seconds=120)
    layout = configs[0].parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    histories = []
    for config in configs:
        engine = build_engine(config, groups, machine_precision(config.precision, device))
        histories.append(train(engine, config))
        del engine
        gc.collect()  # DeepSpeed's engines are cycles of references
    return histories


def train(engine: Any, config: PretrainConfig, steps: int = STEPS) -> History:
    """Return the losses and the gradient norm of each step."""
    history = []
    for step in range(steps):
        batches = micro_batches(engine.groups, config, step)
        losses = engine.mean_losses(engine.train_batch(batches, LEARNING_RATE)).tolist()
        history.append((losses, engine.gradient_norm()))
    return history


def micro_batches(groups: Any, config: PretrainConfig, step: int) -> list[Batch]:
    """Return this replica's part of a step."""
    layout = config.parallelism
    share = layout.global_batch_size // groups.data_size
    whole = global_batch(step, layout.global_batch_size)
    assert whole.pixels is not None
    is_end_to_end = config.model.reconstructor.is_end_to_end
    batches = []
    for start in range(0, share, layout.micro_batch_size):
        mine = slice(groups.data_rank * share + start, None)
        text, codes, pixels = (
            part[mine][: layout.micro_batch_size]
            for part in (whole.text, whole.codes, whole.pixels)
        )
        batches.append(Batch(text=text, codes=codes, pixels=pixels if is_end_to_end else None))
    return batches


@lru_cache(maxsize=1)
def references() -> dict[tuple[ModelConfig, bool], History]:
    """Return the history of one process without any option of a layout, by computation."""
    computations = {
        row.variant.computation: row.variant for layout in LAYOUTS for row in rows_of(layout)
    }
    configs = [
        replace(
            config_of(
                Row(tensor=1, pipeline=1, data=1, variant=Variant(has_groups=variant.has_groups))
            ),
            model=variant.model,
        )
        for variant in computations.values()
    ]
    (histories,) = run_distributed(train_all, 1, configs)
    return dict(zip(computations, histories, strict=True))


def reference_of(variant: Variant) -> History:
    """Return the history of one process that computes the same."""
    return references()[variant.computation]


@lru_cache(maxsize=1)  # rows come layout by layout
def results_of(layout: tuple[int, int, int]) -> dict[Row, list[History]]:
    """Return every rank's history of every row of a layout."""
    rows = rows_of(layout)
    ranks = run_distributed(
        train_all,
        math.prod(layout),
        [config_of(row) for row in rows],
        timeout_seconds=60 * len(rows),
    )
    return {row: [rank[index] for rank in ranks] for index, row in enumerate(rows)}


def largest_difference(history: History, reference: History) -> float:
    """Return the largest relative difference of any loss or norm of any step."""
    pairs = [
        pair
        for (losses, norm), (expected, expected_norm) in zip(history, reference, strict=True)
        for pair in zip([*losses, norm], [*expected, expected_norm], strict=True)
    ]
    return max(abs(one - other) / max(abs(other), 1e-12) for one, other in pairs)
