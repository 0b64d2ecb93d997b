"""The interface between the training loop and what it trains.

The transformer's engines (`ernie_vilg.parallel.engine.engine`) and the image tokenizer's
(`ernie_vilg.tokenizer_training.engine`) have it, so both runs share the loop, the checkpoints, the
guards and the comparison of replicas.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.parallel.engine.update_guard import PendingDecision
from ernie_vilg.parallel.layout.copies import Copy
from ernie_vilg.parallel.layout.groups import Groups


class StepEngine(Protocol):
    """Weights and optimizer state, and the step that changes them."""

    groups: Groups
    """Coordinates and process groups of this rank."""

    def train_batch(self, batches: Sequence[Any], learning_rate: float) -> Tensor:
        """Take one optimizer step; all ranks must call.

        Args:
            batches: this replica's micro-batches, on the CPU.
            learning_rate: learning rate of this step.

        Returns:
            this rank's losses and other sums, float32 [num_losses] on the device.
        """

    def mean_losses(self, losses: Tensor) -> Tensor:
        """Return the mean over replicas of results of `train_batch`; all ranks must call.

        Returns:
            float32 [num_losses] on the CPU, the same on every rank.
        """

    def gradient_norm(self) -> float:
        """Return the norm of the last step's whole gradient, before clipping."""

    def save(self, snapshot: Snapshot) -> None:
        """Copy this rank's part of the state; all ranks must call."""

    def load(self, folder: Path) -> None:
        """Load the files of a snapshot of the same layout; all ranks must call."""

    def replicated(self) -> Iterator[tuple[Copy, Tensor]]:
        """Yield the tensors that other ranks hold as well, in the same order on all of them."""

    @property
    def last_skip(self) -> Tensor:
        """Flag that is 1 if the last update was skipped, else 0; float32 [] on the device."""

    def last_decision(self) -> PendingDecision:
        """Return whether the last update was skipped, and why; the same on every rank."""

    def guard_state(self) -> dict[str, float]:
        """Return the guard's statistics of earlier losses as JSON numbers; equal on every rank."""

    def load_guard_state(self, state: Mapping[str, float]) -> None:
        """Continue from a result of `guard_state`; an empty one starts fresh statistics."""
