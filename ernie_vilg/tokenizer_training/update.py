"""The update of a step: tokenizer and discriminator together, after one decision.

Gradients of a network are summed over ranks once all its backward passes are over, two flat tensors
each, in one order; the discriminator's passes run while the tokenizer's sums travel. Each network
is clipped by its own norm. A rank's mean over micro-batches, the mean over ranks and clipping are
one factor, by which the fused AdamW divides gradients as it reads them.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ernie_vilg.parallel.engine.updates import Update, gradient_divisor, norm_segments
from ernie_vilg.tokenizer_training.flat_weights import FlatWeights


class _Member(NamedTuple):
    weights: FlatWeights
    learning_rate: float


class NetworksUpdate(Update):
    """The update of the networks that take part in a step."""

    def __init__(self, device: torch.device, *, gradient_clipping: float) -> None:
        """Expect no network yet.

        Args:
            device: device of the networks.
            gradient_clipping: largest norm of a network's gradient; 0 turns clipping off.
        """
        self._num_gradients = 0  # backward passes of a step per network, over all ranks
        self._clipping = gradient_clipping
        self._members: list[_Member] = []
        self._works: list[dist.Work] = []
        self.norms_of_networks = torch.zeros(1, dtype=torch.float64, device=device)
        """Norms of the last mean gradients before clipping, in the order in which networks were
        added, float64 [networks]."""

    def begin_step(self, num_passes: int) -> None:
        """Forget the networks of the last step."""
        self._members.clear()
        self._num_gradients = num_passes * dist.get_world_size()

    def add(self, weights: FlatWeights, learning_rate: float) -> None:
        """Let a network take part, whose backward passes are over; all ranks must call.

        Args:
            weights: network with the sum of this rank's gradients.
            learning_rate: its learning rate.
        """
        self._members.append(_Member(weights, learning_rate))
        self._works += all_reduce_at_once(weights.gradients)

    def norms(self) -> Tensor:
        """Wait for the gradients of all ranks and read them once; the second number is unused."""
        for work in self._works:
            work.wait()
        self._works.clear()
        self.norms_of_networks = torch.stack([self._norm(each.weights) for each in self._members])
        whole = self.norms_of_networks.square().sum().sqrt()
        return torch.stack([whole, torch.zeros_like(whole)])

    def apply(self, is_skipped: Tensor, squares: Tensor) -> Tensor:
        """Make or skip the updates; return the norm of the first network's gradient.

        Args:
            is_skipped: 1 if nothing may change, else 0, float32 [].
            squares: unused; every rank has the whole gradient.
        """
        for member, norm in zip(self._members, self.norms_of_networks, strict=True):
            divisor = gradient_divisor(norm, self._clipping, self._num_gradients)
            member.weights.step(member.learning_rate, divisor, is_skipped)
        return self.norms_of_networks[0]

    def _norm(self, weights: FlatWeights) -> Tensor:
        """Return the norm of a network's mean gradient, float64 []."""
        segments = [part for flat in weights.gradients for part in norm_segments(flat)]
        norms = torch.stack(torch._foreach_norm(segments)).double()
        return norms.square().sum().sqrt() / self._num_gradients


def all_reduce_at_once(tensors: Iterable[Tensor]) -> list[dist.Work]:
    """Start to sum tensors over all ranks in place, in this order; nothing to do on one rank."""
    if dist.get_world_size() == 1:
        return []
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    return [work for work in works if work is not None]
