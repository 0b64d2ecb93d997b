"""Sizes of the model that follow from its tokenizers, read from their folders without torch.

The text embedding has more rows than the tokenizer has ids: their number is rounded up to one that
all usual tensor-parallel sizes divide. It depends on no layout, so that a run resumes on another
one; on a GPU it also fills the tiles of matrix products.
"""

from dataclasses import dataclass
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.text_tokenizer import read_vocab_size
from ernie_vilg.vqgan.settings_file import read_config

TEXT_VOCAB_MULTIPLE = 128
"""Divisor of a text vocabulary that follows: tensor-parallel sizes 1, 2, 4 ... 128 divide it."""


@dataclass(frozen=True, kw_only=True)
class FollowedSize:
    """Size of the model that a tokenizer decides."""

    value: int
    """The size."""
    sentence: str
    """Sentence for the log that names the size and its source."""


def followed_size(name: str, source: str, folder: Path) -> FollowedSize:
    """Return a size of the model that is not set.

    Args:
        name: field of `ModelConfig`: text_vocab_size, codebook_size or image_grid_size.
        source: key of the tokenizer's setting, for messages.
        folder: the tokenizer's folder.

    Raises:
        InputError: the folder holds no such tokenizer.
    """
    try:
        value, how = _size(name, folder)
    except InputError as error:
        raise InputError(
            f"model.{name} is not set and follows {source}={folder}, where it cannot be read: "
            f"{error}; or set model.{name} to a number"
        ) from error
    sentence = f"model.{name}={value} follows {source}={folder}{how}"
    return FollowedSize(value=value, sentence=sentence)


def _size(name: str, folder: Path) -> tuple[int, str]:
    if name == "text_vocab_size":
        num_ids = read_vocab_size(folder)
        rows = -(-num_ids // TEXT_VOCAB_MULTIPLE) * TEXT_VOCAB_MULTIPLE
        return rows, f" ({num_ids} ids, rounded up to a multiple of {TEXT_VOCAB_MULTIPLE})"
    config = read_config(folder)
    return {"codebook_size": config.codebook_size, "image_grid_size": config.grid_size}[name], ""
