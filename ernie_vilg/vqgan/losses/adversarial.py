"""Adversarial terms of the image tokenizer's loss, and of the discriminator's.

Every term is a mean over logits, so that its gradient, averaged over ranks and micro-batches, is
the gradient of the whole batch. The schedule is a function of the step alone.

Source: adaptive weight and hinge loss, VQGAN (Esser et al. 2021, arXiv:2012.09841, equation 7);
hinge loss, Lim and Ye 2017 (arXiv:1705.02894); non-saturating loss, Goodfellow et al. 2014
(arXiv:1406.2661); LeCAM regulariser, Tseng et al. 2021 (arXiv:2104.03310).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.config.tokenizer_objective import AdversarialConfig

Average = Callable[[Tensor], Tensor]
"""Function that returns the mean of a tensor over all ranks; every rank must call it."""

_SMALLEST_NORM = 1e-4
"""Number added to the adversarial gradient's norm, as in VQGAN."""


def adversarial_weight(step: int, config: AdversarialConfig) -> float:
    """Return the weight of the tokenizer's adversarial term in a step; 0 leaves the term out.

    Args:
        step: number of steps made before.
        config: settings of the schedule.
    """
    steps_since = step - config.start_step
    if steps_since < 0:
        return 0.0
    return config.weight * min(1.0, (steps_since + 1) / (config.warmup_steps + 1))


def trains_discriminator(step: int, config: AdversarialConfig) -> bool:
    """Return whether the discriminator takes this step, after `step` steps."""
    return config.weight > 0 and step >= config.train_from_step


def generator_loss(fake: Tensor, loss: str) -> Tensor:
    """Return the loss that lowers as logits of reconstructions rise, float32 [].

    Args:
        fake: logits of reconstructions, float, any shape.
        loss: "hinge" or "non_saturating".
    """
    fake = fake.float()
    return -fake.mean() if loss == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, loss: str) -> Tensor:
    """Return the loss that lowers as logits of originals rise and those of reconstructions fall.

    Args:
        real: logits of originals, float, any shape.
        fake: logits of reconstructions, float, any shape.
        loss: "hinge" or "non_saturating".

    Returns:
        mean of both halves, float32 [].
    """
    real, fake = real.float(), fake.float()
    if loss == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_factor(
    other: Tensor, adversarial: Tensor, last_layer: Tensor, *, largest: float, average: Average
) -> Tensor:
    """Return the factor at which the adversarial term pulls as hard as the other terms.

    It is the ratio of the norms of the two gradients at the decoder's last layer. The gradients are
    averaged over ranks before their norms are taken, so that all ranks use the factor of the whole
    batch.

    Args:
        other: terms of pixels and perception, float32 [], with a graph.
        adversarial: the adversarial term, float32 [], with a graph.
        last_layer: weight of the decoder's last convolution.
        largest: upper bound of the factor.
        average: mean over ranks.

    Returns:
        float32 [], without gradient.
    """
    gradients = [
        torch.autograd.grad(term, last_layer, retain_graph=True)[0].float()
        for term in (other, adversarial)
    ]
    of_other, of_adversarial = average(torch.stack(gradients)).flatten(1).norm(dim=1)
    return (of_other / (of_adversarial + _SMALLEST_NORM)).clamp(max=largest).detach()


class LogitAverages(nn.Module):
    """Moving averages of the logits of originals and of reconstructions, for LeCAM.

    They are buffers: part of a checkpoint, changed by `update` alone.
    """

    averages: Tensor
    """Average logit of originals and of reconstructions, float32 [2]."""
    updates: Tensor
    """Number of updates, int64 []."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self.register_buffer("averages", torch.zeros(2))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def statistics(real: Tensor, fake: Tensor) -> Tensor:
        """Return sums that `update` takes: of real logits, of fake ones, and their number.

        Sums of two halves of a batch add up to those of the whole.

        Args:
            real: logits of originals, float, any shape.
            fake: as many logits of reconstructions.

        Returns:
            float32 [3], without gradient.
        """
        real, fake = real.detach().float(), fake.detach().float()
        return torch.stack([real.sum(), fake.sum(), real.new_tensor(real.numel())])

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the LeCAM term: squared distance of each logit to the other side's average.

        Only logits on the far side of the average count. The term is 0 before the first update.

        Args:
            real: logits of originals, float, any shape.
            fake: logits of reconstructions, float, any shape.

        Returns:
            float32 [].
        """
        average_real, average_fake = self.averages.clone().unbind()
        distance = (
            F.relu(real.float() - average_fake).square().mean()
            + F.relu(average_real - fake.float()).square().mean()
        )
        return distance * (self.updates > 0)

    @torch.no_grad()
    def update(self, statistics: Tensor, is_made: Tensor) -> None:
        """Move the averages towards the means of a step; the first update sets them.

        Args:
            statistics: sum of `statistics` over micro-batches and ranks, float32 [3].
            is_made: whether the step is made, bool []; without it nothing changes.
        """
        means = statistics[:2] / statistics[2].clamp_min(1)
        weight = torch.where(self.updates == 0, 1.0, 1 - self._decay)
        # torch.where, not a product: a step that is not made may have NaN in its logits.
        self.averages.copy_(torch.where(is_made, self.averages.lerp(means, weight), self.averages))
        self.updates += is_made.to(self.updates.dtype)
