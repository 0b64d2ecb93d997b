"""Start of the codes, revival of unused ones, and counts of their use, the same on every rank.

The leader decides with the encoder outputs and counts of all ranks and sends its codes to the
others, so that the number of ranks changes nothing. `ernie_vilg.vqgan.quantizers.placement` has the
rules by which vectors are chosen.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.vqgan.quantizers.distances import flatten_grid
from ernie_vilg.vqgan.quantizers.placement import choose_spread_rows, cluster_means
from ernie_vilg.vqgan.quantizers.quantizer import Quantizer

MAX_ROWS_PER_CODE = 64
"""Largest number of encoder outputs per code among which vectors are chosen, for time's sake."""

OnMoved = Callable[[Tensor], None]
"""Function that gets the codes that were set, int64 [count], after every rank has set them."""

logger = logging.getLogger(__name__)


class CodebookUpkeep:
    """Start, revival and counts of a quantizer's codes."""

    def __init__(
        self, quantizer: Quantizer, config: CodebookConfig, on_moved: OnMoved | None = None
    ) -> None:
        """Let the quantizer average over ranks, and count from 0.

        Args:
            quantizer: the quantizer, on this rank's device.
            config: settings of the codes' upkeep.
            on_moved: makes an optimizer forget its moments of codes that were set, and take over
                their values if it holds copies; see `forget_moments`.
        """
        self.quantizer = quantizer
        self.config = config
        self.on_moved = on_moved
        codes = quantizer.code_vectors()
        self.counts = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        """Uses per code on this rank since codes were last set, int64 [codebook]."""
        if dist.get_world_size() > 1:
            quantizer.mean_over_ranks = mean_over_ranks

    def count(self, codes: Tensor, is_made: Tensor) -> None:
        """Count the codes of a step; copies nothing to the host.

        Args:
            codes: codes of this rank's pictures, int64 [batch, grid, grid].
            is_made: whether the step is made, bool []; without it nothing is counted.
        """
        codes = codes.flatten()
        self.counts.index_add_(0, codes, is_made.to(torch.int64).expand(len(codes)))

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether unused codes are revived after a step.

        Args:
            step: number of steps taken.
            steps: number of steps of the run.
        """
        every = self.config.revive_every
        return (
            self.quantizer.codes_are_outputs
            and every > 0
            and step > 0
            and step % every == 0
            and step < self.config.revive_until * steps
        )

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Set every code to an encoder output or a mean of some; all ranks must call.

        Nothing happens where codes do not lie among encoder outputs, which is logged.

        Args:
            vectors: encoder outputs of this rank's pictures of the first step, all micro-batches,
                float [batch, embedding, grid, grid].
            generator: random generator on the vectors' device, equal on all ranks.
        """
        if not self.quantizer.codes_are_outputs:
            if dist.get_rank() == LEADER:
                logger.info(
                    "codes start at random and are never revived: the quantizer's logits choose "
                    "them, so that they do not lie among encoder outputs"
                )
            return
        rows = self._rows_of_all_ranks(vectors)
        if dist.get_rank() == LEADER:
            means = choose_spread_rows(rows, len(self.counts), generator)
            if self.config.initialization == "kmeans":
                means = cluster_means(
                    rows, means, self.config.kmeans_iterations, self.quantizer.to_code_space
                )
            self.quantizer.set_codes(torch.arange(len(means), device=means.device), means)
        self._finish(torch.arange(len(self.counts), device=rows.device))

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator) -> int:
        """Move unused codes to encoder outputs far from every used one; all ranks must call.

        Args:
            vectors: encoder outputs of this rank's pictures of the last step, all micro-batches,
                float [batch, embedding, grid, grid].
            generator: random generator on the vectors' device, equal on all ranks.

        Returns:
            the number of moved codes.
        """
        counts = self.total_counts()
        unused = (counts == 0).nonzero().flatten()
        if len(unused) > 0:
            rows = self._rows_of_all_ranks(vectors)
            if dist.get_rank() == LEADER:
                used = self.quantizer.code_vectors()[counts > 0]
                moved = choose_spread_rows(rows, len(unused), generator, codebook=used)
                self.quantizer.set_codes(unused, moved)
            self._finish(unused)
        self.counts.zero_()
        return len(unused)

    def total_counts(self) -> Tensor:
        """Return the counts over all ranks, int64 [codebook]; all ranks must call.

        A checkpoint holds these.
        """
        total = self.counts.clone()
        dist.all_reduce(total)
        return total

    def load_counts(self, total: Tensor) -> None:
        """Take up the counts of a checkpoint, on any number of ranks.

        Args:
            total: counts over all ranks, int64 [codebook]; the leader holds them from now on.
        """
        self.counts.copy_(total)
        if dist.get_rank() != LEADER:
            self.counts.zero_()

    def _rows_of_all_ranks(self, vectors: Tensor) -> Tensor:
        """Return all ranks' vectors as rows in the order of the global batch, not too many."""
        rows = self.quantizer.to_code_space(flatten_grid(vectors.float())).contiguous()
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows)
        rows = torch.cat(gathered)
        most = MAX_ROWS_PER_CODE * len(self.counts)
        if len(rows) <= most:
            return rows
        if dist.get_rank() == LEADER:
            logger.info("codes are chosen among %d of %d encoder outputs", most, len(rows))
        # Evenly spaced, so that every picture takes part.
        return rows[torch.arange(most, device=rows.device) * len(rows) // most]

    def _finish(self, indices: Tensor) -> None:
        """Send the leader's codes to all ranks and tell the optimizer which ones were set."""
        for tensor in (*self.quantizer.parameters(), *self.quantizer.buffers()):
            dist.broadcast(tensor.detach(), src=LEADER)
        if self.on_moved is not None:
            self.on_moved(indices)


def forget_moments(optimizer: Optimizer, quantizer: Quantizer, indices: Tensor) -> None:
    """Set Adam's moments of some codes to 0; nothing where no gradient moves codes one by one.

    Args:
        optimizer: Adam or AdamW over the quantizer's own parameters, not over copies of them.
        quantizer: the quantizer.
        indices: codes that were set, int64 [count].
    """
    parameter = quantizer.code_parameter
    if parameter is None or parameter not in optimizer.state:
        return
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[parameter][name][indices] = 0


class _MeanOverRanks(torch.autograd.Function):
    """Mean over ranks, whose backward pass is the identity."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks; all ranks must call.

    The gradient passes unchanged: this rank's part counts 1 / ranks in the mean, but gradients are
    averaged over ranks, where a batch on a single rank would have their sum.

    Args:
        tensor: float, of the same shape on all ranks.
    """
    mean: Tensor = _MeanOverRanks.apply(tensor)
    return mean
