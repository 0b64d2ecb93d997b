"""Embeddings: from ids to the sequences of a batch of pairs in both directions.

A source slot holds its own token. A target slot holds the token before the one that it predicts,
and the position embedding of the predicted token; the first target slot holds a begin-of-text or
begin-of-image vector. If a reconstructor needs the last code as an input, one more slot follows the
image.

Source: position embeddings are not stated by ERNIE-ViLG; image positions are the sum of a row and
a column vector, and text padding is learned per slot, as in DALL-E (arXiv:2102.12092, appendix B).
"""

import torch
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, PADDING_ID


class Embedding(nn.Module):
    """The first layer: text ids and image codes to both directions' hidden states."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        hidden = config.hidden_size
        grid = config.image_grid_size
        self.text_embedding = layers.vocab_embedding(config.text_vocab_size, hidden)
        self.image_embedding = layers.vocab_embedding(config.codebook_size, hidden)
        self.begin_of_image = nn.Parameter(torch.empty(hidden))
        self.text_padding = nn.Parameter(torch.empty(config.text_length, hidden))
        self.text_position = nn.Parameter(torch.empty(config.text_length, hidden))
        self.image_row = nn.Parameter(torch.empty(grid, hidden))
        self.image_column = nn.Parameter(torch.empty(grid, hidden))
        # One vector per direction and modality tells source from target.
        self.segment = nn.Parameter(torch.empty(2, 2, hidden))
        self.has_end_of_image = config.num_image_slots > config.num_image_tokens
        if self.has_end_of_image:
            self.end_of_image = nn.Parameter(torch.empty(hidden))  # as a source
            self.end_of_image_position = nn.Parameter(torch.empty(hidden))
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self.repeats_text = config.text_padding == "repeated"
        self.split_tokens = layers.split_tokens

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        """Embed a batch of pairs in both directions.

        Args:
            pair: text ids, int64 [batch, text_length], padded; and image codes in raster
                order, int64 [batch, num_image_tokens].

        Returns:
            hidden states, float [direction, batch, seq, hidden]; with sequence parallelism
            this rank's part of the tokens, [tokens / size, hidden].
        """
        text, codes = pair
        begin = torch.full_like(text[:, :1], BEGIN_OF_TEXT_ID)
        text_tokens = self.text_embedding(torch.cat([begin, text], dim=1))
        image_tokens = self.image_embedding(codes)
        begin_of_image = self.begin_of_image.expand(len(codes), 1, -1)
        inputs = image_tokens if self.has_end_of_image else image_tokens[:, :-1]
        text_to_image = [
            self.text_source(text, text_tokens[:, 1:]),
            self.image_target(torch.cat([begin_of_image, inputs], dim=1)),
        ]
        image_to_text = [
            self.text_target(text_tokens[:, :-1]),
            self.image_source(image_tokens),
        ]
        hidden = torch.stack([torch.cat(text_to_image, dim=1), torch.cat(image_to_text, dim=1)])
        hidden = self.split_tokens(hidden)
        return hidden if self.dropout is None else self.dropout(hidden)

    def text_source(self, text: Tensor, tokens: Tensor) -> Tensor:
        """Return the text slots of text-to-image.

        Args:
            text: ids, int64 [batch, text_length].
            tokens: their embeddings, float [batch, text_length, hidden].
        """
        padded = torch.where((text == PADDING_ID)[..., None], self.text_padding, tokens)
        states = padded + self.text_position
        if self.repeats_text:
            states = states.gather(1, _repeated(text)[..., None].expand_as(states))
        return states + self.segment[0, 0]

    def image_source(self, tokens: Tensor) -> Tensor:
        """Return the image slots of image-to-text.

        Args:
            tokens: embeddings of all codes, float [batch, num_image_tokens, hidden].

        Returns:
            float [batch, num_image_slots, hidden].
        """
        if self.has_end_of_image:
            end = self.end_of_image.expand(len(tokens), 1, -1)
            tokens = torch.cat([tokens, end], dim=1)
        return tokens + self.image_position() + self.segment[1, 1]

    def text_target(self, tokens: Tensor, first_slot: int = 0) -> Tensor:
        """Return some text slots of image-to-text.

        Args:
            tokens: embeddings of the tokens before the predicted ones, float [batch, slots,
                hidden].
            first_slot: index of the first of these text slots.
        """
        position = self.text_position[first_slot : first_slot + tokens.shape[1]]
        return tokens + position + self.segment[1, 0]

    def image_target(self, tokens: Tensor, first_slot: int = 0) -> Tensor:
        """Return some image slots of text-to-image, as `text_target` does for text."""
        position = self.image_position()[first_slot : first_slot + tokens.shape[1]]
        return tokens + position + self.segment[0, 1]

    def image_position(self) -> Tensor:
        """Return the vectors of all image slots in raster order, [num_image_slots, hidden]."""
        grid = (self.image_row[:, None] + self.image_column[None, :]).flatten(0, 1)
        if self.has_end_of_image:
            return torch.cat([grid, self.end_of_image_position[None]])
        return grid


def _repeated(text: Tensor) -> Tensor:
    """Return the slot whose piece stands at each slot when captions are repeated.

    Args:
        text: ids, int64 [batch, text_length], padded.

    Returns:
        int64 [batch, text_length]; the slot itself where a caption is empty.
    """
    slots = torch.arange(text.shape[1], device=text.device).expand_as(text)
    length = (text != PADDING_ID).sum(dim=1, keepdim=True)
    return torch.where(length > 0, slots % length.clamp(min=1), slots)
