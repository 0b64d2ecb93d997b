"""The whole model on one device, run over some slots of one direction at a time.

The source's slots go through the model once, and each layer keeps their keys and values. Target
slots then attend to the source and to the targets before them, as their rows of the training mask
allow. Drawing and captioning add one target slot at a time; a likelihood computes all at once.
"""

from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention import KeyValueCache
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.block import Block
from ernie_vilg.model.embedding import Embedding
from ernie_vilg.model.head import Head

Caches = list[KeyValueCache]
"""Keys and values of every layer, for the sequences of a batch in one direction."""


class CachedModel:
    """The layers of a model, with caches of keys and values."""

    def __init__(self, model: nn.Sequential, config: ModelConfig) -> None:
        """Take a model.

        Args:
            model: embedding, blocks and head on one device, in evaluation mode.
            config: the model's shape.
        """
        embedding, *blocks, head = model
        assert isinstance(embedding, Embedding)
        assert isinstance(head, Head)
        self.embedding = embedding
        self.head = head
        self.config = config
        self._blocks = [block for block in blocks if isinstance(block, Block)]

    @property
    def weight(self) -> Tensor:
        """A weight with the dtype and the device of the computation."""
        return self.embedding.begin_of_image

    def read_text(self, text: Tensor) -> Caches:
        """Run texts as sources of pictures.

        Args:
            text: padded ids, int64 [batch, text_length].

        Returns:
            caches with the keys and values of the text slots.
        """
        source = self.embedding.text_source(text, self.embedding.text_embedding(text))
        slots = slice(0, self.config.text_length)
        return self._read(source, Direction.TEXT_TO_IMAGE, slots)

    def read_image(self, codes: Tensor) -> Caches:
        """Run pictures as sources of texts.

        Args:
            codes: image codes in raster order, int64 [batch, num_image_tokens].

        Returns:
            caches with the keys and values of the image slots.
        """
        source = self.embedding.image_source(self.embedding.image_embedding(codes))
        slots = slice(self.config.text_length, self.config.seq_length)
        return self._read(source, Direction.IMAGE_TO_TEXT, slots)

    def _read(self, source: Tensor, direction: Direction, slots: slice) -> Caches:
        caches = self._empty_caches(len(source))
        self._extend(source, caches, direction, slots, slots.stop)
        return caches

    def extend_image(self, hidden: Tensor, caches: Caches, first_slot: int = 0) -> Tensor:
        """Run image slots as targets.

        Args:
            hidden: output of `Embedding.image_target`, float [batch, slots, hidden].
            caches: those of `read_text`, extended by the image slots before these; these are added.
            first_slot: index of the first of these image slots.

        Returns:
            states after all blocks, float [batch, slots, hidden].
        """
        start = self.config.text_length + first_slot
        slots = slice(start, start + hidden.shape[1])
        return self._extend(hidden, caches, Direction.TEXT_TO_IMAGE, slots, slots.stop)

    def extend_text(self, hidden: Tensor, caches: Caches, first_slot: int = 0) -> Tensor:
        """Run text slots as targets, as `extend_image` does for image slots."""
        slots = slice(first_slot, first_slot + hidden.shape[1])
        num_keys = self.config.seq_length  # the image, which is the source, follows the text
        return self._extend(hidden, caches, Direction.IMAGE_TO_TEXT, slots, num_keys)

    def _empty_caches(self, batch: int) -> Caches:
        config = self.config
        shape = (1, batch, config.num_heads, config.seq_length, config.head_dim)
        return [
            KeyValueCache(keys=self.weight.new_zeros(shape), values=self.weight.new_zeros(shape))
            for _ in self._blocks
        ]

    def _extend(
        self, hidden: Tensor, caches: Caches, direction: Direction, slots: slice, num_keys: int
    ) -> Tensor:
        hidden = hidden[None]
        for block, cache in zip(self._blocks, caches, strict=True):
            hidden = block.extend(hidden, cache, direction, slots, num_keys)
        return hidden[0]


def select_rows(caches: Caches, rows: Tensor) -> Caches:
    """Return copies of some sequences of some caches, in the order of `rows`, int64 [count]."""
    return [
        KeyValueCache(keys=cache.keys[:, rows], values=cache.values[:, rows]) for cache in caches
    ]
