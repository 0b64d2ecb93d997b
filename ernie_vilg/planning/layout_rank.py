"""The rank of a run's layout among all layouts that the planner knows, by seconds per step.

Seconds are cheap arithmetic, while memory is traced and slow: it is estimated for layouts that are
predicted to be faster than the run's own, fastest first, until enough of them fit. A run that does
not fit has no rank: the fastest layout that fits is named instead.
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
"""Number of layouts that fit, after which the search ends."""
MAX_TRIED = 60
"""Number of layouts whose memory is estimated."""


@dataclass(frozen=True, kw_only=True)
class LayoutRank:
    """The place of a layout among those of the same run on as many GPUs."""

    fits: bool
    """Whether the run's own layout fits into the GPU's memory."""
    num_faster: int
    """Number of layouts found that fit and are predicted to be faster."""
    num_tried: int
    """Number of layouts whose memory was estimated, fastest first."""
    is_complete: bool
    """Whether all faster layouts were examined; of a run that does not fit, all layouts."""
    num_legal: int
    """Number of legal layouts, whether they fit or not."""
    fastest: PretrainConfig | None
    """Run with the fastest other layout that fits; None if none was found, or if the run's own is
    faster."""
    gain: float
    """Seconds per step of the run's layout over those of the fastest, less 1."""

    def words(self, num_gpus: int) -> str:
        """Return a sentence about the rank."""
        among = f"of {self.num_legal:,} legal layouts on {num_gpus} GPU{'s' * (num_gpus > 1)}"
        if self.fastest is None:
            return self._words_of_none(among)
        layout = self.fastest.parallelism
        compiled = "compiled" if self.fastest.compile_blocks else "not compiled"
        size = f"{abs(self.gain):.1%}" if abs(self.gain) >= 0.001 else "less than 0.1%"
        fastest = (
            f"{layout.describe(num_gpus)}, micro-batch {layout.micro_batch_size}, {compiled}: "
            f"{size} {'slower' if self.gain < 0 else 'faster'}"
        )
        if not self.fits:
            return f"the fastest {among} that fits, as predicted: {fastest}"
        place = "number" if self.is_complete else "at best number"
        return (
            f"layout is {place} {self.num_faster + 1} {among}, by predicted speed of those that "
            f"fit; the fastest: {fastest}"
        )

    def _words_of_none(self, among: str) -> str:
        if self.fits and self.is_complete:
            return f"layout is the fastest {among} that fits, as predicted"
        if self.is_complete:
            return f"none {among} fits"
        tried = f"none of the {self.num_tried} fastest {among} fits"
        return f"{tried}; slower ones were not examined"


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
    legal, _ = candidate_layouts(config, gpu, num_gpus)
    timed = timed_layouts(config, gpu, [config.parallelism, *legal], num_gpus, Correction())
    own, *seconds = [step.total for _, _, step in timed]
    needed = worst_memory(config, num_gpus, precision, Correction()).total
    fits = needed <= gpu.memory_bytes
    order = sorted(range(len(legal)), key=seconds.__getitem__)
    wanted = [index for index in order if not fits or seconds[index] < own]
    room = gpu.memory_bytes * (1 - PlanConfig.memory_margin)
    found: dict[int, PretrainConfig] = {}
    tried = wanted[:MAX_TRIED]
    for index in tried:
        run = _fitting(config, legal[index], num_gpus, precision, room)
        if run is not None:
            found[index] = run
        if len(found) == (MAX_FASTER if fits else 1):
            break
    first = next(iter(found), None)
    return LayoutRank(
        fits=fits,
        num_faster=sum(seconds[index] < own for index in found),
        num_tried=len(tried),
        is_complete=len(found) < MAX_FASTER and len(tried) == len(wanted),
        num_legal=len(legal),
        fastest=None if first is None else found[first],
        gain=0.0 if first is None else own / seconds[first] - 1,
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
