"""Whether the two directions of one model pull its weights the same way.

Both losses are differentiated on the same pairs, each alone. Over the parameters that both use,
the cosine of the two gradients says whether a step for one direction helps the other (above 0) or
undoes it (below 0), and the norms say which direction decides where a step goes.

The suggested weights make the weighted gradients of both directions equally long. They are a
reading of the instruments: nothing here changes a run.

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
from ernie_vilg.model.loss import target_losses
from ernie_vilg.vocabulary import PADDING_ID

GROUPS = ("embedding", "early_blocks", "middle_blocks", "late_blocks", "head")
"""Parts of the model, from the input on; the blocks are cut into thirds."""

MIN_SHARE = 0.05
"""Of the sum of both weights that the suggestion leaves to either direction."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the gradients of both losses lie to each other, over some parameters."""

    cosine: float
    """From -1, against each other, to 1, alike; 0 where a gradient is 0."""
    text_to_image_norm: float
    """Euclidean norm of the gradient of the text-to-image loss."""
    image_to_text_norm: float
    """Euclidean norm of the gradient of the image-to-text loss."""


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """Both directions on the same pairs."""

    text_to_image_loss: float
    """Mean negative log-likelihood of the codes given the text, nats per code."""
    image_to_text_loss: float
    """Mean negative log-likelihood of the text given the codes, nats per piece, its end
    included."""
    whole: Agreement
    """Over all parameters that both directions use."""
    groups: dict[str, Agreement]
    """Over those of each part of the model, by the names in GROUPS; a part that the model or one
    of the directions does not have is left out."""


def compare_directions(
    model: nn.Sequential,
    config: ModelConfig,
    pairs: tuple[Tensor, Tensor],
    *,
    batch_size: int = 8,
    should_stop: Callable[[], bool] = lambda: False,
) -> TwoWay:
    """Differentiate the loss of each direction on some pairs.

    Takes the memory of two whole gradients beside the weights.

    Args:
        model: embedding, blocks and head on one device, whole, in evaluation mode.
        config: its shape.
        pairs: padded text ids, int64 [pairs, text_length], and image codes, int64
            [pairs, num_image_tokens], on the model's device.
        batch_size: pairs per pass; changes nothing but the memory.
        should_stop: asked before every pass.

    Raises:
        StoppedError: `should_stop` said so.
    """
    text, codes = pairs
    names, parameters = zip(*model.named_parameters(), strict=True)
    counts = (codes.numel(), int((text != PADDING_ID).sum()))
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
    """Return which of GROUPS a parameter belongs to.

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
        gradients: of text-to-image and of image-to-text, a tensor per parameter each, None where
            the loss does not depend on it.
    """
    dot = first = second = 0.0
    for one, other in _couples(gradients):
        if one is None or other is None:
            continue  # the output projection of a modality, say: one direction's alone
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
    """Return the weights of both losses that make their gradients equally long.

    With norms g_ti and g_it of the unweighted gradients and the sum S of the present weights,

        w_ti * g_ti = w_it * g_it  and  w_ti + w_it = S
        w_ti = S * g_it / (g_ti + g_it)

    Each share w / S is kept from MIN_SHARE to 1 - MIN_SHARE: few pairs give noisy norms, and no
    direction should be given up for it.

    Args:
        agreement: over the parameters that both directions use.
        objective: the present weights.

    Returns:
        text_to_image_weight and image_to_text_weight; the present ones where a norm is not a
        number, or both are 0.
    """
    total = objective.text_to_image_weight + objective.image_to_text_weight
    norms = agreement.text_to_image_norm + agreement.image_to_text_norm
    if not math.isfinite(norms) or norms == 0:
        return objective.text_to_image_weight, objective.image_to_text_weight
    share = min(max(agreement.image_to_text_norm / norms, MIN_SHARE), 1 - MIN_SHARE)
    return total * share, total * (1 - share)
