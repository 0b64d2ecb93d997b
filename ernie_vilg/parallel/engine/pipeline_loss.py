"""The loss function of a pipeline's last stage."""

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
        self.total = torch.zeros(num_losses(config), device=device)
        """Losses summed since the last call of `collect`, float32 [num_losses]."""

    def __call__(self, output: HeadOutput, targets: Targets) -> Tensor:
        """Return the scalar to differentiate."""
        losses: Losses = self._objective(output, targets)
        self.total += losses.detached()
        return losses.total

    def collect(self) -> Tensor:
        """Return the sum since the last call, float32 [num_losses], and reset it to zero."""
        total = self.total.clone()
        self.total.zero_()
        return total
