"""Captions for a text tokenizer: a sample to train on, and held-out ones to measure.

Any number of captions is read once, and memory holds no more than the two samples. A reservoir
keeps a sample in which each caption read so far is equally likely.

Source: Algorithm R (Vitter 1985, "Random sampling with a reservoir").
"""

import hashlib
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError

MOST_MEASURED = 100_000
"""Most captions that a card is measured on."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaptionSample:
    """Captions of a training, and the number of those they were drawn from."""

    training: list[str]
    """Captions to train on, cut at `max_caption_characters`."""
    measured: list[str]
    """Held-out captions to measure, whole."""
    num_captions: int
    """Number of captions that were read, repetitions included."""
    num_held_out: int
    """Number of those that were held out."""
    num_cut: int
    """Number of those not held out that were longer than `max_caption_characters`."""

    def counts(self) -> dict[str, Any]:
        """Return the numbers for the card."""
        return {
            "read": self.num_captions,
            "held_out": self.num_held_out,
            "measured": len(self.measured),
            "trained_on": len(self.training),
            "cut": self.num_cut,
        }


class Reservoir:
    """Uniform sample, of bounded size, of all captions that were added."""

    def __init__(self, size: int, seed: str) -> None:
        """Take the size of the sample and the seed of its choices."""
        self._size = size
        self._random = random.Random(seed)
        self.num_added = 0
        """Number of captions that were added."""
        self.captions: list[str] = []
        """The sample: all in their order if no more than `size` were added."""

    def add(self, caption: str) -> None:
        """Take a caption into the sample with the probability size / captions so far."""
        self.num_added += 1
        if len(self.captions) < self._size:
            self.captions.append(caption)
        elif (place := self._random.randrange(self.num_added)) < self._size:
            self.captions[place] = caption


def draw_captions(captions: Iterable[str], config: TrainTextTokenizerConfig) -> CaptionSample:
    """Read captions once, hold some out, and draw those to train on.

    The same captions in the same order give the same sample.

    Args:
        captions: all captions.
        config: size and seed of the sample, the fraction held out, and the length of a caption.

    Raises:
        InputError: no caption is left to train on, or one of the captions cannot be read.
    """
    training = Reservoir(config.sample_captions, f"training {config.seed}")
    held_out = Reservoir(MOST_MEASURED, f"measured {config.seed}")
    most, num_cut = config.max_caption_characters, 0
    for caption in captions:
        if is_held_out(caption, config.held_out_fraction):
            held_out.add(caption)
        else:
            num_cut += len(caption) > most
            training.add(caption[:most])
    if not training.captions:
        raise InputError(
            f"shards={config.shards} with held_out_fraction={config.held_out_fraction}: of "
            f"{held_out.num_added} captions none is left to train on; name shards with captions, "
            "or set held_out_fraction=0"
        )
    sample = CaptionSample(
        training=training.captions,
        measured=held_out.captions,
        num_captions=training.num_added + held_out.num_added,
        num_held_out=held_out.num_added,
        num_cut=num_cut,
    )
    _say(sample, config)
    return sample


def is_held_out(caption: str, fraction: float) -> bool:
    """Return whether a caption is measured instead of trained on; equal captions are alike.

    Args:
        caption: the whole caption.
        fraction: expected fraction of different captions that are held out.
    """
    digest = hashlib.blake2b(caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _say(sample: CaptionSample, config: TrainTextTokenizerConfig) -> None:
    """Log the numbers, and whatever differs from what was asked for."""
    left = sample.num_captions - sample.num_held_out
    logger.info(
        "%d captions read: %d held out, of which %d are measured; %d of the other %d are trained "
        "on (sample_captions=%d%s)",
        sample.num_captions,
        sample.num_held_out,
        len(sample.measured),
        len(sample.training),
        left,
        config.sample_captions,
        ": there are no more" if left < config.sample_captions else "",
    )
    if sample.num_cut:
        logger.warning(
            "%d of %d captions have more than max_caption_characters=%d and are cut there for "
            "training",
            sample.num_cut,
            left,
            config.max_caption_characters,
        )
    if config.held_out_fraction and not sample.measured:
        logger.warning(
            "held_out_fraction=%s holds none of %d captions out, so the card has no figures: set "
            "a larger held_out_fraction",
            config.held_out_fraction,
            sample.num_captions,
        )
