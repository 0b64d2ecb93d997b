"""What the last stage of a pipeline computes from the head's output.

Source: ours.
"""

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.head import HeadOutput
from ernie_vilg.model.loss import Losses, Objective, Targets, num_losses


class PipelineLoss:
    """The pipeline's loss function, which also keeps the losses of each direction.

    DeepSpeed's pipeline reports one scalar per step; the parts are picked up here.
    """

    def __init__(self, objective: Objective, config: ModelConfig, device: torch.device) -> None:
        self._objective = objective
        self._total = torch.zeros(num_losses(config), device=device)

    def __call__(self, output: HeadOutput, targets: Targets) -> Tensor:
        """Return the scalar to differentiate."""
        losses: Losses = self._objective(output, targets)
        self._total += losses.detached()
        return losses.total

    @property
    def total(self) -> Tensor:
        """The sum since the last call of `collect`, float32 [4]."""
        return self._total

    def collect(self) -> Tensor:
        """Return the sum since the last call, float32 [4], and start again from zero."""
        total = self._total.clone()
        self._total.zero_()
        return total
