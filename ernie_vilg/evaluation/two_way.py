"""Agreement of the gradients of both directions.

Each loss is differentiated alone, on the same pairs. Over the parameters that both use, a cosine of
the two gradients above 0 says that a step for one direction also helps the other, below 0 that it
harms the other. The norms say which direction dominates a step.

The suggested loss weights give the weighted gradients of both directions the same norm. They are
advice only: this module changes nothing of a run.

Source: the cosine of task gradients, Yu et al. 2020 (PCGrad, arXiv:2001.06782); equal gradient
norms, Chen et al. 2018 (GradNorm, arXiv:1711.02257), whose balance is solved here for two losses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.generation.decode import StoppedError
from ernie_vilg.model.loss import target_losses, text_targets

GROUPS = ("embedding", "early_blocks", "middle_blocks", "late_blocks", "head")
"""Parts of the model from input to output; the blocks are split into thirds."""

MIN_SHARE = 0.05
"""Smallest fraction of the summed weights that a suggestion gives to either direction."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Comparison of the gradients of both losses over some parameters."""

    cosine: float
    """Cosine of the two gradients, from -1 (opposed) to 1 (parallel); 0 where a gradient is 0."""
    text_to_image_norm: float
    """Euclidean norm of the gradient of the text-to-image loss."""
    image_to_text_norm: float
    """Euclidean norm of the gradient of the image-to-text loss."""


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """Losses and gradients of both directions on the same pairs."""

    text_to_image_loss: float
    """Mean negative log-likelihood of the codes given the text, nats per code."""
    image_to_text_loss: float
    """Mean negative log-likelihood of the text given the codes, nats per piece, its end
    included."""
    whole: Agreement
    """Agreement over all parameters that both directions use."""
    groups: dict[str, Agreement]
    """Agreement over each part of the model by its name in GROUPS, without the parts that the model
    lacks or that one direction does not use."""


def compare_directions(
    model: nn.Sequential,
    config: ModelConfig,
    pairs: tuple[Tensor, Tensor],
    *,
    batch_size: int = 8,
    should_stop: Callable[[], bool] = lambda: False,
) -> TwoWay:
    """Differentiate the loss of each direction on some pairs.

    Needs memory for two whole gradients besides the weights.

    Args:
        model: embedding, blocks and head on one device, whole, in evaluation mode.
        config: its shape.
        pairs: padded text ids, int64 [pairs, text_length], and image codes, int64
            [pairs, num_image_tokens], on the model's device.
        batch_size: pairs per pass; it changes only the memory.
        should_stop: called before every pass; true ends the work.

    Raises:
        StoppedError: `should_stop` returned true.
    """
    text, codes = pairs
    names, parameters = zip(*model.named_parameters(), strict=True)
    counts = (codes.numel(), int(text_targets(text).sum()))
    losses = [0.0, 0.0]
    gradients: list[list[Tensor | None]] = [[None] * len(parameters) for _ in counts]
    for start in range(0, len(text), batch_size):
        if should_stop():
            raise StoppedError("asked to stop before the last pair")
        chosen = slice(start, start + batch_size)
        output = model((text[chosen], codes[chosen]))
        losses_of_targets = target_losses(output, text[chosen], codes[chosen])
        for direction, (nats, count) in enumerate(zip(losses_of_targets, counts, strict=True)):
            loss = nats.sum() / count
            parts = torch.autograd.grad(
                loss, parameters, retain_graph=direction == 0, allow_unused=True
            )
            gradients[direction] = [
                part if whole is None else whole + part
                for whole, part in zip(gradients[direction], parts, strict=True)
            ]
            losses[direction] += float(loss.detach())
    places = [group_of(name, config.num_layers) for name in names]
    return TwoWay(
        text_to_image_loss=losses[0],
        image_to_text_loss=losses[1],
        whole=agreement_of(gradients),
        groups=_agreements_by_group(gradients, places),
    )


def group_of(name: str, num_layers: int) -> str:
    """Return the member of GROUPS that a parameter belongs to.

    Args:
        name: its name in the whole model, layer index first.
        num_layers: transformer blocks.
    """
    index = int(name.partition(".")[0])
    if index == 0:
        return "embedding"
    if index > num_layers:
        return "head"
    return ("early_blocks", "middle_blocks", "late_blocks")[3 * (index - 1) // num_layers]


def _agreements_by_group(
    gradients: Sequence[Sequence[Tensor | None]], places: Sequence[str]
) -> dict[str, Agreement]:
    found = {}
    for group in GROUPS:
        chosen = [
            [part for part, place in zip(parts, places, strict=True) if place == group]
            for parts in gradients
        ]
        if any(None not in couple for couple in _couples(chosen)):
            found[group] = agreement_of(chosen)
    return found


def agreement_of(gradients: Sequence[Sequence[Tensor | None]]) -> Agreement:
    """Compare two gradients over the parameters that have both.

    Args:
        gradients: the one of text-to-image and the one of image-to-text, each a tensor per
            parameter, None where the loss does not depend on it.
    """
    dot = first = second = 0.0
    for one, other in _couples(gradients):
        if one is None or other is None:
            continue  # such as the output projection of a modality, which one direction uses
        one, other = one.double(), other.double()
        dot += float((one * other).sum())
        first += float(one.square().sum())
        second += float(other.square().sum())
    lengths = math.sqrt(first) * math.sqrt(second)
    return Agreement(
        cosine=dot / lengths if lengths else 0.0,
        text_to_image_norm=math.sqrt(first),
        image_to_text_norm=math.sqrt(second),
    )


def _couples(
    gradients: Sequence[Sequence[Tensor | None]],
) -> list[tuple[Tensor | None, Tensor | None]]:
    one, other = gradients
    return list(zip(one, other, strict=True))


def suggested_weights(agreement: Agreement, objective: ObjectiveConfig) -> tuple[float, float]:
    """Return the loss weights that give both weighted gradients the same norm.

    With norms g_ti and g_it of the unweighted gradients and the sum S of the present weights:

        w_ti * g_ti = w_it * g_it  and  w_ti + w_it = S
        w_ti = S * g_it / (g_ti + g_it)

    Each share w / S is kept from MIN_SHARE to 1 - MIN_SHARE: few pairs give noisy norms, which
    should not switch a direction off.

    Args:
        agreement: agreement over the parameters that both directions use.
        objective: the present weights.

    Returns:
        text_to_image_weight and image_to_text_weight; the present ones where a norm is not finite
        or both are 0.
    """
    total = objective.text_to_image_weight + objective.image_to_text_weight
    norms = agreement.text_to_image_norm + agreement.image_to_text_norm
    if not math.isfinite(norms) or norms == 0:
        return objective.text_to_image_weight, objective.image_to_text_weight
    share = min(max(agreement.image_to_text_norm / norms, MIN_SHARE), 1 - MIN_SHARE)
    return total * share, total * (1 - share)
