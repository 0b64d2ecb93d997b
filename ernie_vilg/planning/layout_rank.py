"""The rank of a run's layout among all layouts that the planner knows, by seconds per step.

Seconds are cheap arithmetic, while memory is traced and slow: it is estimated for layouts that are
predicted to be faster than the run's own, fastest first, until enough of them fit.
"""

from dataclasses import dataclass

import torch

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.planning.calibration import Correction
from ernie_vilg.planning.layouts import candidate_layouts, with_layout
from ernie_vilg.planning.plan import timed_layouts, worst_memory

MAX_FASTER = 20
"""Number of faster layouts that fit, after which the search ends."""
MAX_TRIED = 60
"""Number of faster layouts whose memory is estimated."""


@dataclass(frozen=True, kw_only=True)
class LayoutRank:
    """The place of a layout among those of the same run on as many GPUs."""

    num_faster: int
    """Number of layouts found that fit and are predicted to be faster."""
    is_complete: bool
    """Whether all faster layouts were examined."""
    num_legal: int
    """Number of legal layouts, whether they fit or not."""
    fastest: PretrainConfig | None
    """Run with the fastest layout that fits; None if that is the run's own."""
    gain: float
    """Seconds per step of the run's layout over those of the fastest, less 1."""

    def words(self, num_gpus: int) -> str:
        """Return a sentence about the rank."""
        among = f"of {self.num_legal:,} legal layouts on {num_gpus} GPUs"
        if self.fastest is None:
            return f"layout is the fastest {among} that fits, as predicted"
        number = self.num_faster + 1
        place = f"number {number}" if self.is_complete else f"behind at least {self.num_faster}"
        layout = self.fastest.parallelism
        words = layout.describe(num_gpus)
        compiled = "compiled" if self.fastest.compile_blocks else "not compiled"
        return (
            f"layout is {place} {among}, by predicted speed of those that fit; "
            f"the fastest: {words}, "
            f"micro-batch {layout.micro_batch_size}, {compiled}: {self.gain:.1%} faster"
        )


def rank_of_layout(
    config: PretrainConfig, num_gpus: int, precision: torch.dtype
) -> LayoutRank | None:
    """Rank a run's layout.

    Args:
        config: settings of the run.
        num_gpus: number of GPUs.
        precision: number format of weights and activations.

    Returns:
        the rank; None if the kind of GPU is unknown.
    """
    gpu = config.gpu
    if gpu is None:
        return None
    correction = Correction()
    legal, _ = candidate_layouts(config, gpu, num_gpus)
    own = config.parallelism
    timed = sorted(
        (
            (step.total, index)
            for index, (_, _, step) in enumerate(
                timed_layouts(config, gpu, [own, *legal], num_gpus, correction)
            )
        ),
    )
    seconds = {index: total for total, index in timed}
    faster = [legal[index - 1] for total, index in timed if total < seconds[0]]
    room = gpu.memory_bytes * (1 - PlanConfig.memory_margin)
    found: list[PretrainConfig] = []
    for layout in faster[:MAX_TRIED]:
        run = _fitting(config, layout, num_gpus, precision, room)
        found += [run] if run is not None else []
        if len(found) == MAX_FASTER:
            break
    is_complete = len(found) < MAX_FASTER and len(faster) <= MAX_TRIED
    best = seconds[1 + legal.index(found[0].parallelism)] if found else seconds[0]
    return LayoutRank(
        num_faster=len(found),
        is_complete=is_complete,
        num_legal=len(legal),
        fastest=found[0] if found else None,
        gain=seconds[0] / best - 1,
    )


def _fitting(
    config: PretrainConfig,
    layout: ParallelismConfig,
    num_gpus: int,
    precision: torch.dtype,
    room: float,
) -> PretrainConfig | None:
    """Return the run with a layout if it is legal and leaves the planner's margin of memory."""
    try:
        run = with_layout(config, layout)
    except InputError:
        return None
    memory = worst_memory(run, num_gpus, precision, Correction())
    return run if memory.total <= room else None
