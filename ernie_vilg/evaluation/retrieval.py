"""Retrieval by the model's own likelihood: true captions among captions, true pictures among many.

Every caption of some held-out pairs is scored against every picture, in both directions:

    text given image    log p(caption | picture)
    image given text    log p(picture | caption)
    sum                 their sum

Each is a plain log-likelihood, the sum over all target tokens, and is not divided by their number.
All three scores rank both ways. Where the candidates are targets, they do not start alike: among
the captions of a picture, text given image prefers short and frequent ones; among the pictures of a
caption, image given text prefers plain ones, by far, since a picture has many codes. Where the
candidates are sources, one target is compared under all of them, and nothing starts ahead: with
candidates that are equally frequent, these are the posterior probabilities.

A true candidate's rank is 1 plus the number of others that are at least as likely: a tie counts
against the model. Captions are compared as the model sees them: two that have the same ids are one
caption, and only the first pair of a caption takes part.
"""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.errors import InputError
from ernie_vilg.generation.likelihood import Likelihood
from ernie_vilg.model.attention_mask import Direction

TEXT_GIVEN_IMAGE, IMAGE_GIVEN_TEXT, SUM = "text_given_image", "image_given_text", "sum"
SCORES = (TEXT_GIVEN_IMAGE, IMAGE_GIVEN_TEXT, SUM)
SHOWN = TEXT_GIVEN_IMAGE
"""Score whose ranks and likeliest candidates are shown, for both questions: texts are short, so
that none starts far ahead."""
CUTOFFS = (1, 5, 10)
NUM_SHOWN = 5

logger = logging.getLogger(__name__)


class Candidate(Protocol):
    """A held-out pair."""

    @property
    def image(self) -> Image.Image:
        """The picture."""

    @property
    def caption(self) -> str:
        """Its caption."""


class Scorer(Protocol):
    """A model that scores pairs, such as `ernie_vilg.generation.pipeline.ErnieVilg`."""

    @property
    def likelihood(self) -> Likelihood:
        """Likelihoods of ids and codes."""

    def text_ids(self, prompts: Sequence[str]) -> Tensor:
        """Return the padded ids of texts, int64 [batch, text_length]."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the codes of pictures, int64 [batch, grid, grid]."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Scores of every caption with every picture of some pairs."""

    pairs: tuple[int, ...]
    """Indices of the pairs that take part."""
    scores: dict[str, Tensor]
    """Log-likelihoods by score, nats, float64 [captions, pictures]; the diagonal is true."""

    def figures(self) -> dict[str, Any]:
        """Return the figures of both questions under every score."""
        return {
            "candidates": len(self.pairs),
            "captions_of_pictures": {
                name: figures_of(ranks_of_truth(scores.T)) for name, scores in self.scores.items()
            },
            "pictures_of_captions": {
                name: figures_of(ranks_of_truth(scores)) for name, scores in self.scores.items()
            },
        }

    def records(self) -> dict[int, dict[str, Any]]:
        """Return ranks and likeliest candidates of each pair that takes part, by its index."""
        captions, pictures = self.scores[SHOWN].T, self.scores[SHOWN]
        parts = zip(
            self.pairs,
            ranks_of_truth(captions),
            self._likeliest(captions),
            ranks_of_truth(pictures),
            self._likeliest(pictures),
            strict=True,
        )
        return {
            pair: {
                "caption_rank": caption_rank,
                "likeliest_captions": likeliest_captions,
                "picture_rank": picture_rank,
                "likeliest_pictures": likeliest_pictures,
            }
            for pair, caption_rank, likeliest_captions, picture_rank, likeliest_pictures in parts
        }

    def _likeliest(self, scores: Tensor) -> list[list[int]]:
        """Return the pairs of the likeliest candidates of each query, likeliest first."""
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :NUM_SHOWN]
        return [[self.pairs[index] for index in row] for row in best.tolist()]


def retrieve(
    model: Scorer, pairs: Sequence[Candidate], *, candidates: int, batch_size: int
) -> Retrieval:
    """Score every caption with every picture.

    Args:
        model: the model.
        pairs: held-out pairs.
        candidates: number of pairs that take part, the first ones with different captions.
        batch_size: number of pictures encoded at once.

    Raises:
        InputError: there are too few different captions.
    """
    chosen = _different(model.text_ids([pair.caption for pair in pairs]), candidates)
    text = model.text_ids([pairs[index].caption for index in chosen])
    images = [pairs[index].image for index in chosen]
    parts = [
        model.encode_images(images[start : start + batch_size])
        for start in range(0, len(images), batch_size)
    ]
    codes = torch.cat(parts).flatten(1).to(text.device)
    by_direction = [
        model.likelihood.matrix(direction, text, codes).cpu()
        for direction in (Direction.IMAGE_TO_TEXT, Direction.TEXT_TO_IMAGE)
    ]
    scores = dict(zip(SCORES, [*by_direction, by_direction[0] + by_direction[1]], strict=True))
    retrieval = Retrieval(pairs=tuple(chosen), scores=scores)
    _log(retrieval.figures())
    return retrieval


def _different(text: Tensor, count: int) -> list[int]:
    """Return the first texts of different ids."""
    first: dict[tuple[int, ...], int] = {}
    for index, ids in enumerate(text.tolist()):
        first.setdefault(tuple(ids), index)
    if len(first) < count:
        raise InputError(
            f"retrieval.candidates={count}: the {len(text)} pairs have {len(first)} different "
            "captions, as the model's ids tell them apart; ask for fewer, or raise count"
        )
    return list(first.values())[:count]


def ranks_of_truth(scores: Tensor) -> list[int]:
    """Return the rank of each query's true candidate, from 1; ties count against it.

    Args:
        scores: higher is likelier, [queries, candidates]; candidate i is true for query i.
    """
    truth = scores.diagonal()[:, None]
    return [int(rank) for rank in (scores >= truth).sum(dim=1)]


def figures_of(ranks: Sequence[int]) -> dict[str, float]:
    """Return the share of true candidates among the first 1, 5 and 10, and the median rank."""
    shares = {
        f"recall_at_{cutoff}": sum(rank <= cutoff for rank in ranks) / len(ranks)
        for cutoff in CUTOFFS
    }
    return {**shares, "median_rank": statistics.median(ranks)}


def _log(figures: dict[str, Any]) -> None:
    for question in ("captions_of_pictures", "pictures_of_captions"):
        for score, values in figures[question].items():
            shares = [f"{100 * values[f'recall_at_{n}']:.0f} % in the first {n}" for n in CUTOFFS]
            logger.info(
                "%s of %d, by %s: %s, median rank %g",
                question.replace("_", " "),
                figures["candidates"],
                score.replace("_", " "),
                ", ".join(shares),
                values["median_rank"],
            )
