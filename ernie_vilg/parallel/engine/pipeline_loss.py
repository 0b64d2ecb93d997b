"""The loss function of a pipeline's last stage."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.head import HeadOutput
from ernie_vilg.model.loss import Losses, Objective, Targets, num_losses


class PipelineLoss:
    """The pipeline's loss function, which also adds up the parts of the loss.

    DeepSpeed's pipeline returns one scalar per step only.
    """

    def __init__(self, objective: Objective, config: ModelConfig, device: torch.device) -> None:
        self._objective = objective
        self._sums: Tensor | None = None
        self.total = torch.zeros(num_losses(config), device=device)
        """Losses summed since the last call of `collect`, float32 [num_losses]."""

    def __call__(self, output: HeadOutput, targets: Targets) -> Tensor:
        """Return the scalar to differentiate; of held-out pairs their number."""
        if self._sums is not None:
            sums = self._objective.sums(output, targets)
            self._sums += sums
            return sums[0]
        losses: Losses = self._objective(output, targets)
        self.total += losses.detached()
        return losses.total

    @contextlib.contextmanager
    def adding_to(self, sums: Tensor) -> Iterator[None]:
        """Add the sums of held-out pairs to `sums`, float64 [num_sums], instead of their losses."""
        self._sums = sums
        try:
            yield
        finally:
            self._sums = None

    def collect(self) -> Tensor:
        """Return the sum since the last call, float32 [num_losses], and reset it to zero."""
        total = self.total.clone()
        self.total.zero_()
        return total
