"""The number of samples of every optimizer step; `data.sequence.order` counts with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_vilg.config.schema import PositiveInt
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BatchSizeStageConfig:
    """Steps with a smaller global batch, before the run has its full one."""

    steps: PositiveInt
    """Number of steps with this size."""
    global_batch_size: PositiveInt
    """Pairs per optimizer step, over all data-parallel ranks."""


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """The size of each step's global batch.

    Source: the batch-size warm-up of GPT-3 (arXiv:2005.14165, section 2.3); Megatron-LM has it as
    `rampup-batch-size`.
    """

    full: int
    """Samples per step, over all replicas, after the warm-up."""
    warmup: tuple[BatchSizeStageConfig, ...] = ()
    """Stages of the warm-up in order."""


def check_growing(warmup: Sequence[BatchSizeStageConfig], full: int) -> None:
    """Check that every size of a warm-up is below the one after it.

    Args:
        warmup: the stages in order.
        full: global batch after them.

    Raises:
        InputError: one is not.
    """
    sizes = [stage.global_batch_size for stage in warmup]
    if sorted({*sizes, full}) != [*sizes, full]:
        raise InputError(
            f"parallelism.batch_size_warmup has the sizes {', '.join(map(str, sizes))}, before "
            f"parallelism.global_batch_size={full}: every size must be above the one before it"
        )
