"""The log-likelihood of pairs under the model: pictures given texts, and texts given pictures.

A likelihood is the sum of the log-probabilities of all target tokens, in nats, without any
normalisation by their number: a long text has a smaller one than a short text that is as likely per
piece. The end of a text is a target; padding is not, and neither is the question of an answer.
These are the terms that training minimises, and that a drawing reports: a caption that the model
writes has a slightly larger log-probability there, because ids that are never written are left out
of its softmax.

Pairs name their text and their picture by index. So each source goes through the model once,
whatever the number of its targets, and the same call serves pairs, candidates of one source, and
all captions against all pictures.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.generation.cached_model import CachedModel, Caches, select_rows
from ernie_vilg.generation.decode import ShouldStop, StoppedError, never
from ernie_vilg.generation.fixed_batches import batch_size, rows_of_batch
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.cross_entropy import vocab_cross_entropy
from ernie_vilg.model.loss import text_targets
from ernie_vilg.system.progress import progress
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID

_WHAT = ("likelihood of pictures given texts", "likelihood of texts given pictures")


class Likelihood:
    """Likelihoods under a whole model on one device."""

    def __init__(self, model: nn.Sequential, config: ModelConfig) -> None:
        """Take a model.

        Args:
            model: embedding, blocks and head on one device, in evaluation mode.
            config: the model's shape.
        """
        self._model = CachedModel(model, config)

    def of_pairs(
        self,
        direction: Direction,
        text: Tensor,
        codes: Tensor,
        pairs: Tensor | None = None,
        *,
        should_stop: ShouldStop = never,
    ) -> Tensor:
        """Return the log-likelihood of each pair's target given its source.

        Args:
            direction: TEXT_TO_IMAGE for pictures given texts, IMAGE_TO_TEXT for texts given
                pictures.
            text: padded ids, int64 [texts, text_length].
            codes: image codes in raster order, int64 [pictures, num_image_tokens].
            pairs: index of the text and index of the picture of each pair, int64 [pairs, 2]; None
                pairs them in order.
            should_stop: called before every batch; true ends the work.

        Returns:
            nats, at most 0, float64 [pairs]. In float32 a pair's value does not depend on the other
            pairs.

        Raises:
            StoppedError: `should_stop` returned true.
        """
        values = self.of_targets(direction, text, codes, pairs, should_stop=should_stop)
        return values.double().sum(dim=1)

    def matrix(
        self, direction: Direction, text: Tensor, codes: Tensor, *, should_stop: ShouldStop = never
    ) -> Tensor:
        """Return the log-likelihood of every text with every picture; log the progress.

        Args:
            direction: as for `of_pairs`.
            text: padded ids, int64 [texts, text_length].
            codes: image codes, int64 [pictures, num_image_tokens].
            should_stop: called before every batch; true ends the work.

        Returns:
            nats, float64 [texts, pictures].

        Raises:
            StoppedError: `should_stop` returned true.
        """
        pairs = torch.cartesian_prod(torch.arange(len(text)), torch.arange(len(codes)))
        sources = pairs[:, direction]
        size = batch_size(self._model.weight)
        result = torch.empty(len(pairs), dtype=torch.float64, device=text.device)
        num_sources = (len(text), len(codes))[direction]
        starts = range(0, num_sources, size)
        what = _WHAT[direction]
        for start in progress(starts, total=len(starts), what=what, unit="batches"):
            part = ((sources >= start) & (sources < start + size)).nonzero()[:, 0]
            result[part] = self.of_pairs(
                direction, text, codes, pairs[part], should_stop=should_stop
            )
        return result.view(len(text), len(codes))

    @torch.inference_mode()
    def of_targets(
        self,
        direction: Direction,
        text: Tensor,
        codes: Tensor,
        pairs: Tensor | None = None,
        *,
        should_stop: ShouldStop = never,
    ) -> Tensor:
        """Return the log-probability of each target token of each pair.

        Args:
            direction: as for `of_pairs`, like all other arguments.
            text: padded ids.
            codes: image codes.
            pairs: indices of texts and pictures.
            should_stop: called before every batch; true ends the work.

        Returns:
            nats, 0 where none is predicted, float32 [pairs, num_image_tokens] or [pairs,
            text_length].

        Raises:
            StoppedError: `should_stop` returned true.
        """
        if pairs is None:
            assert len(text) == len(codes), (len(text), len(codes))
            pairs = torch.arange(len(text))[:, None].expand(-1, 2)
        targets = codes if direction is Direction.TEXT_TO_IMAGE else text
        sources = text if direction is Direction.TEXT_TO_IMAGE else codes
        pairs = pairs.to(text.device)
        of_target = pairs[:, 1 - direction]
        result = torch.empty(len(pairs), targets.shape[1], device=text.device)
        for caches, members, rows in self._batches(direction, sources, pairs[:, direction]):
            if should_stop():
                raise StoppedError("asked to stop before the last pair")
            chosen = targets[of_target[members]]
            result[members] = self._log_probabilities(direction, chosen, select_rows(caches, rows))
        return result

    def _batches(
        self, direction: Direction, sources: Tensor, of_source: Tensor
    ) -> Iterator[tuple[Caches, Tensor, Tensor]]:
        """Yield batches of one size: caches, indices of pairs, and the row of each pair's source.

        The last batch of some caches repeats its last pair.
        """
        read = (self._model.read_text, self._model.read_image)[direction]
        used, position = of_source.unique(return_inverse=True)
        size = batch_size(self._model.weight)
        for start in range(0, len(used), size):
            caches = read(sources[used[rows_of_batch(used, start, size)]])
            is_here = (position >= start) & (position < start + size)
            members = is_here.nonzero()[:, 0]
            for first in range(0, len(members), size):
                chosen = members[rows_of_batch(members, first, size)]
                yield caches, chosen, position[chosen] - start

    def _log_probabilities(self, direction: Direction, target: Tensor, caches: Caches) -> Tensor:
        """Return the log-probability of each target token; extend the caches by all targets."""
        model, embedding, head = self._model, self._model.embedding, self._model.head
        if direction is Direction.TEXT_TO_IMAGE:
            begin = embedding.begin_of_image.expand(len(target), 1, -1)
            before = torch.cat([begin, embedding.image_embedding(target[:, :-1])], dim=1)
            states = model.extend_image(embedding.image_target(before), caches)
            losses, _ = vocab_cross_entropy(head.image_logits(head.norm(states)), target)
            return -losses
        begin = torch.full_like(target[:, :1], BEGIN_OF_TEXT_ID)
        before = embedding.text_embedding(torch.cat([begin, target[:, :-1]], dim=1))
        states = model.extend_text(embedding.text_target(before), caches)
        losses, _ = vocab_cross_entropy(head.text_logits(head.norm(states)), target)
        return torch.where(text_targets(target), -losses, 0.0)
