"""Candidate layouts of a run, and the reasons why others are refused.

The checks of the settings decide which layouts are legal: each candidate is put into the run's
settings, and their error is the reason of the refusal.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.planning.workload import can_compile

Run = TypeVar("Run", bound=PretrainConfig)

_TENSOR_SIZES = (1, 2, 4, 8)
_ZERO_STAGES = (1, 2, 3)
_CHECKPOINTING = ("none", "selective", "full")
_MAX_MICRO_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A layout that is not possible."""

    layout: str
    """Layout in words."""
    reason: str
    """Kind of reason, by which refusals are counted."""
    fix: str
    """Whole message, which ends with the setting to change."""


def candidate_layouts(
    config: PretrainConfig, gpu: GpuConfig, num_gpus: int
) -> tuple[list[ParallelismConfig], list[Refusal]]:
    """Return the layouts that are legal by themselves on a number of GPUs, and the refusals.

    The checks of the whole run are slow, so the planner applies them to fast layouts only.

    Args:
        config: the run.
        gpu: kind of GPU.
        num_gpus: number of GPUs.
    """
    legal: list[ParallelismConfig] = []
    refused: list[Refusal] = []
    for values in _candidates(config, gpu, num_gpus):
        try:
            layout = replace(config.parallelism, **values)
            layout.num_micro_batches(num_gpus)
        except InputError as error:
            words = ", ".join(f"{name}={value}" for name, value in values.items())
            refused.append(refusal_of(words, error))
        else:
            legal.append(layout)
    return legal, refused


def refusal_of(layout: str, error: InputError) -> Refusal:
    """Return a refusal with the message of the settings' own check."""
    return Refusal(layout=layout, reason=_kind(str(error)), fix=str(error))


def with_layout(config: Run, layout: ParallelismConfig) -> Run:
    """Return a run with another layout, whose blocks are compiled only where they can be.

    Raises:
        InputError: the run is not legal with this layout.
    """
    compiled = config.compile_blocks and can_compile(layout)
    return replace(config, parallelism=layout, compile_blocks=compiled)


def override_line(config: PretrainConfig) -> str:
    """Return the overrides that select a run's layout on a command line."""
    names = (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "zero_stage",
        "sequence_parallel",
        "activation_checkpointing",
        "offload_optimizer",
        "micro_batch_size",
        "global_batch_size",
    )
    words = []
    for name in names:
        value = getattr(config.parallelism, name)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words.append(f"parallelism.{name}={text}")
    return " ".join([*words, f"compile_blocks={str(config.compile_blocks).lower()}"])


def _candidates(config: PretrainConfig, gpu: GpuConfig, num_gpus: int) -> Iterator[dict[str, Any]]:
    """Yield the settings of layouts that use all GPUs, legal or not."""
    limit = min(_MAX_MICRO_BATCH, config.parallelism.global_batch_size)
    micro_batches = [2**power for power in range(limit.bit_length())]
    for tensor in _TENSOR_SIZES:
        if tensor > gpu.gpus_per_node or num_gpus % tensor:
            continue  # tensor ranks communicate at every layer: within a machine only
        deepest = min(num_gpus // tensor, config.model.num_layers)
        for pipeline in range(1, deepest + 1):
            if num_gpus // tensor % pipeline:
                continue
            choices = itertools.product(
                _ZERO_STAGES,
                micro_batches,
                _CHECKPOINTING,
                (False, True) if tensor > 1 else (False,),
                (False, True),
            )
            for zero_stage, micro_batch, checkpointing, sequence_parallel, offload in choices:
                yield {
                    "tensor_parallel_size": tensor,
                    "pipeline_parallel_size": pipeline,
                    "zero_stage": zero_stage,
                    "micro_batch_size": micro_batch,
                    "activation_checkpointing": checkpointing,
                    "sequence_parallel": sequence_parallel,
                    "offload_optimizer": offload,
                }


def _kind(message: str) -> str:
    """Return the kind of a refusal, without its figures."""
    kinds = {
        "is no multiple of parallelism.micro_batch_size": "global batch does not divide",
        "DeepSpeed rejects 2 and 3": "ZeRO 2 or 3 under a pipeline",
        "compile_blocks=true with parallelism.zero_stage": "compiled blocks under ZeRO 3",
        "is not divisible by parallelism.tensor_parallel_size": "tensor size does not divide",
        "tokens of a micro-batch": "tokens do not divide",
    }
    return next((kind for words, kind in kinds.items() if words in message), "not legal")
