"""Round trips: a caption through a drawn picture, and a picture through a written caption.

    text -> image -> text    draw the caption, then measure how likely the caption is given the
                             drawn codes, and write a caption for them
    image -> text -> image   write a caption, then measure how likely the true codes are given the
                             written caption, and draw it

Each likelihood is compared with that of the same target given its true source; the difference is
the cost of the first leg. Codes and ids go from leg to leg unchanged: nothing is decoded to pixels
or characters and encoded again.

Source: back-translation (Sennrich et al. 2016, arXiv:1511.06709) read as a measure, cycle
consistency (Zhu et al. 2017, arXiv:1703.10593); the agreement of captions is ROUGE-L (Lin 2004).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ernie_vilg.generation.decode import Drawing, ShouldStop, never
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.generation.randomness import Occurrences, drawing_seed, item_of, uniforms
from ernie_vilg.generation.sampling import Sampling
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.loss import text_targets
from ernie_vilg.vocabulary import caption_ids


@dataclass(frozen=True, kw_only=True)
class RoundTrips:
    """Both round trips of some pairs."""

    text_given_image: Tensor
    """Mean log-likelihood of each true caption given the true codes, nats per piece, its end
    included, float32 [pairs]; the reference of `text_given_drawing`."""
    text_given_drawing: Tensor
    """Mean log-likelihood of each true caption given the codes drawn for it, float32 [pairs]."""
    image_given_text: Tensor
    """Mean log-likelihood of each picture's codes given the true caption, nats per code, float32
    [pairs]; the reference of `image_given_writing`."""
    image_given_writing: Tensor
    """Mean log-likelihood of each picture's codes given the caption written for it, float32
    [pairs]."""
    drawn: Drawing
    """Pictures drawn for the true captions."""
    redrawn: Drawing
    """Pictures drawn for the captions written for the true pictures."""
    written: Tensor
    """Captions written for the true pictures, padded ids, int64 [pairs, text_length]."""
    rewritten: Tensor
    """Captions written for the pictures drawn for the true captions, int64 [pairs, text_length]."""


def take_round_trips(
    model: ErnieVilg,
    text: Tensor,
    codes: Tensor,
    *,
    temperature: float,
    should_stop: ShouldStop = never,
) -> RoundTrips:
    """Make both round trips.

    Args:
        model: draws and writes.
        text: padded ids of the true captions, int64 [pairs, text_length].
        codes: codes of the true pictures, int64 [pairs, num_image_tokens].
        temperature: temperature of the drawn pictures; captions are written greedily.
        should_stop: called before every slot; true ends the work.

    Raises:
        StoppedError: `should_stop` returned true.
    """
    generator, greedy = model.token_generator, Sampling()
    sampling = Sampling(temperature=temperature)
    # Both drawings of a pair use the same random numbers, so only their captions differ.
    items = [item_of(bytes(str(ids), "ascii")) for ids in text.tolist()]
    counted = Occurrences()
    seeds = [drawing_seed(0, counted.next(item), 0) for item in items]
    numbers = uniforms(seeds, items, max(text.shape[1], codes.shape[1]))
    drawn = generator.draw(text, sampling, numbers, should_stop=should_stop)
    rewritten, _ = generator.caption(drawn.codes, greedy, numbers, should_stop=should_stop)
    written, _ = generator.caption(codes, greedy, numbers, should_stop=should_stop)
    redrawn = generator.draw(written, sampling, numbers, should_stop=should_stop)
    to_image, to_text = Direction
    return RoundTrips(
        text_given_image=mean_log_likelihoods(model, to_text, text, codes),
        text_given_drawing=mean_log_likelihoods(model, to_text, text, drawn.codes),
        image_given_text=mean_log_likelihoods(model, to_image, text, codes),
        image_given_writing=mean_log_likelihoods(model, to_image, written, codes),
        drawn=drawn,
        redrawn=redrawn,
        written=written,
        rewritten=rewritten,
    )


def mean_log_likelihoods(
    model: ErnieVilg, direction: Direction, text: Tensor, codes: Tensor
) -> Tensor:
    """Return the mean log-likelihood of one half of some pairs given the other.

    Args:
        model: the model.
        direction: TEXT_TO_IMAGE for the codes, IMAGE_TO_TEXT for the text.
        text: padded ids, int64 [pairs, text_length].
        codes: int64 [pairs, num_image_tokens].

    Returns:
        nats per code or per piece, float32 [pairs].
    """
    is_text = direction is Direction.IMAGE_TO_TEXT
    num_targets = text_targets(text).sum(dim=1) if is_text else codes.shape[1]
    return (model.likelihood.of_pairs(direction, text, codes) / num_targets).float()


def agreement_of_captions(captions: Tensor, others: Tensor) -> float:
    """Return the mean ROUGE-L of two lists of captions, from 0 to 1.

    Args:
        captions: padded ids, int64 [pairs, text_length].
        others: as many.
    """
    couples = zip(captions.tolist(), others.tolist(), strict=True)
    scores = [rouge_l(caption_ids(one), caption_ids(other)) for one, other in couples]
    return sum(scores) / len(scores)


def rouge_l(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the F-measure of the longest common subsequence of two captions.

    With L the length of that subsequence, it is the harmonic mean of L / len(one) and
    L / len(other), which is 2 L / (len(one) + len(other)). Two empty captions agree fully.
    """
    if not one and not other:
        return 1.0
    lengths = [0] * (len(other) + 1)  # L for each prefix of `other`
    for piece in one:
        diagonal = 0
        for index, candidate in enumerate(other, start=1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if piece == candidate else max(above, lengths[index - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(one) + len(other))
