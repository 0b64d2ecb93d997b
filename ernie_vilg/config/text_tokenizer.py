"""Settings of text tokenizer training.

Source: SentencePiece's options (Kudo and Richardson 2018, arXiv:1808.06226).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import LocalInput, LocalOutput, PositiveInt, Range, Settings
from ernie_vilg.vocabulary import NUM_BYTES, NUM_SPECIAL_IDS


@dataclass(frozen=True, kw_only=True)
class TrainTextTokenizerConfig(Settings):
    """Settings of launch/train_text_tokenizer.py."""

    shards: LocalInput
    """Folder of the image shards with the training captions."""
    output_dir: LocalOutput
    """Folder for `text_tokenizer.model` and `text_tokenizer.json`."""
    vocab_size: Annotated[
        int,
        Range(above=NUM_SPECIAL_IDS + NUM_BYTES, reason="special ids and bytes come first"),
    ] = 16384
    """Largest number of ids, with 4 special ones and 256 bytes; fewer if the captions have fewer
    pieces."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """unigram (pieces chosen by likelihood) or bpe (pieces merged pair by pair)."""
    character_coverage: Annotated[float, Range(above=0, at_most=1)] = 0.9995
    """Fraction of the captions' characters that get a piece of their own; rarer ones become
    bytes."""
    max_piece_length: PositiveInt = 16
    """Most characters of a piece. Formulaic captions need few: without spaces between words, whole
    phrases would become pieces."""
    max_captions: PositiveInt | None = None
    """Number of training captions, at even distances; null takes all."""
    overwrite: bool = False
    """Whether a text tokenizer already in `output_dir` is replaced."""
