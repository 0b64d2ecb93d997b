"""Generation of the target, token by token, given the source, with a key-value cache.

Source and target keep their slots of training. The source's slots go through the model once; then
each target slot adds its keys and values to the cache.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.generation.cached_model import CachedModel
from ernie_vilg.generation.fixed_batches import in_fixed_batches
from ernie_vilg.generation.sampling import Sampling, choose_tokens
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    END_OF_TEXT_ID,
    PADDING_ID,
    UNKNOWN_ID,
)

ShouldStop = Callable[[], bool]
"""Function that is called before every slot; true ends the work."""


class StoppedError(Exception):
    """The caller asked to stop the work."""


class Drawing(NamedTuple):
    """Codes and pictures drawn for a batch of texts."""

    codes: Tensor
    """Image codes in raster order, int64 [batch, num_image_tokens]."""
    log_probabilities: Tensor
    """Log-probability of each sequence of codes in nats, float32 [batch]."""
    pixels: Tensor | None
    """Pictures of an end-to-end reconstructor, float [batch, 3, height, width] in [-1, 1]; None if
    the model has none, and the image tokenizer decodes the codes."""


def never() -> bool:
    """Return false, so that the work goes on to its end."""
    return False


_NEVER_WRITTEN = (PADDING_ID, UNKNOWN_ID, BEGIN_OF_TEXT_ID)


class TokenGenerator:
    """Generator of image codes or text ids with the whole model on one device."""

    def __init__(
        self, model: nn.Sequential, config: ModelConfig, num_text_ids: int | None = None
    ) -> None:
        """Take a model.

        Args:
            model: embedding, blocks and head on one device, in evaluation mode.
            config: the model's shape.
            num_text_ids: number of ids of the text tokenizer; the model's text vocabulary may be
                larger, so that it divides over devices. None stands for all of the model's.
        """
        self._model = CachedModel(model, config)
        self._config = config
        self._num_text_ids = config.text_vocab_size if num_text_ids is None else num_text_ids

    @torch.inference_mode()
    def draw(
        self,
        text: Tensor,
        sampling: Sampling,
        uniforms: Tensor,
        *,
        should_stop: ShouldStop = never,
    ) -> Drawing:
        """Generate image codes for texts, and pixels where the model has a reconstructor.

        Args:
            text: padded ids, int64 [batch, text_length].
            sampling: rule by which each code is chosen.
            uniforms: random numbers of the choices, float64 [batch, positions] in [0, 1), at least
                one per image token.
            should_stop: called before every slot; true ends the work.

        Raises:
            StoppedError: `should_stop` returned true.
        """

        def draw(*rows: Tensor) -> Drawing:
            return self._draw(*rows, sampling=sampling, should_stop=should_stop)

        return Drawing(*in_fixed_batches(draw, text, uniforms, like=self._model.weight))

    def _draw(
        self, text: Tensor, uniforms: Tensor, *, sampling: Sampling, should_stop: ShouldStop
    ) -> Drawing:
        config, embedding, head = self._config, self._model.embedding, self._model.head
        caches = self._model.read_text(text)
        codes = torch.empty(
            len(text), config.num_image_tokens, dtype=torch.int64, device=text.device
        )
        total = torch.zeros(len(text), device=text.device)
        token = embedding.begin_of_image.expand(len(text), 1, -1)
        states = []  # normed states of the image slots for the reconstructor, each [batch, hidden]
        for index in range(config.num_image_slots):
            _check(should_stop)
            hidden = embedding.image_target(token, first_slot=index)
            state = head.norm(self._model.extend_image(hidden, caches, index)[:, 0])
            if head.reconstructor is not None:
                states.append(state)
            if index == config.num_image_tokens:
                break  # the last code is only an input: nothing is left to predict
            logits = head.image_logits(state)
            codes[:, index], log_probability = choose_tokens(logits, sampling, uniforms[:, index])
            total += log_probability
            token = embedding.image_embedding(codes[:, index : index + 1])
        pixels = None
        if head.reconstructor is not None:
            pixels = head.reconstructor(torch.stack(states, dim=1)).float().clamp(-1, 1)
        return Drawing(codes, total, pixels)

    @torch.inference_mode()
    def caption(
        self,
        codes: Tensor,
        sampling: Sampling,
        uniforms: Tensor,
        *,
        should_stop: ShouldStop = never,
    ) -> tuple[Tensor, Tensor]:
        """Generate text for images until every caption has ended.

        Args:
            codes: image codes in raster order, int64 [batch, num_image_tokens].
            sampling: rule by which each piece is chosen. Special ids other than the end of text,
                and ids that the text tokenizer lacks, are never chosen.
            uniforms: random numbers of the choices, float64 [batch, positions] in [0, 1), at least
                one per text slot.
            should_stop: called before every slot; true ends the work.

        Returns:
            ids, int64 [batch, text_length], padding after the end of text, and each
            caption's log-probability in nats, end of text included, float32 [batch].

        Raises:
            StoppedError: `should_stop` returned true.
        """

        def caption(*rows: Tensor) -> tuple[Tensor, Tensor]:
            return self._caption(*rows, sampling=sampling, should_stop=should_stop)

        text, total = in_fixed_batches(caption, codes, uniforms, like=self._model.weight)
        return text, total

    def _caption(
        self, codes: Tensor, uniforms: Tensor, *, sampling: Sampling, should_stop: ShouldStop
    ) -> tuple[Tensor, Tensor]:
        config, embedding, head = self._config, self._model.embedding, self._model.head
        caches = self._model.read_image(codes)
        text = torch.full(
            (len(codes), config.text_length), PADDING_ID, dtype=torch.int64, device=codes.device
        )
        total = torch.zeros(len(codes), device=codes.device)
        is_open = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        previous = torch.full_like(codes[:, :1], BEGIN_OF_TEXT_ID)
        for slot in range(config.text_length):
            _check(should_stop)
            hidden = embedding.text_target(embedding.text_embedding(previous), first_slot=slot)
            state = head.norm(self._model.extend_text(hidden, caches, slot)[:, 0])
            logits = head.text_logits(state)
            logits[:, _NEVER_WRITTEN] = float("-inf")
            logits[:, self._num_text_ids :] = float("-inf")
            ids, log_probability = choose_tokens(logits, sampling, uniforms[:, slot])
            text[:, slot] = torch.where(is_open, ids, PADDING_ID)
            total += torch.where(is_open, log_probability, 0.0)
            is_open &= ids != END_OF_TEXT_ID
            if not is_open.any():
                break
            previous = text[:, slot : slot + 1]
        return text, total


def _check(should_stop: ShouldStop) -> None:
    if should_stop():
        raise StoppedError("asked to stop before the last slot")
