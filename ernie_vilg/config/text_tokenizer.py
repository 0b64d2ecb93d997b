"""Settings of text tokenizer training.

Source: the options are SentencePiece's (Kudo and Richardson 2018, arXiv:1808.06226).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import LocalInput, LocalOutput, PositiveInt, Range, Settings
from ernie_vilg.vocabulary import NUM_BYTES, NUM_SPECIAL_IDS


@dataclass(frozen=True, kw_only=True)
class TrainTextTokenizerConfig(Settings):
    """What `launch/train_text_tokenizer.py` learns from, and what it learns."""

    shards: LocalInput
    """Folder of image shards whose captions are learned from."""
    output_dir: LocalOutput
    """Folder to write: `text_tokenizer.model` and `text_tokenizer.json`."""
    vocab_size: Annotated[
        int,
        Range(above=NUM_SPECIAL_IDS + NUM_BYTES, reason="special ids and bytes come first"),
    ] = 16384
    """Most ids, with 4 special ones and 256 bytes. Fewer where the captions hold no more
    pieces."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """unigram (pieces chosen by likelihood) or bpe (pieces merged pair by pair)."""
    character_coverage: Annotated[float, Range(above=0, at_most=1)] = 0.9995
    """Share of the captions' characters that get a piece of their own; rarer ones become
    bytes."""
    max_piece_length: PositiveInt = 16
    """Most characters in a piece. Formulaic captions need a small one: without spaces between
    words nothing else keeps whole phrases from becoming one piece."""
    max_captions: PositiveInt | None = None
    """Captions learned from, taken at even distances; null takes all."""
    overwrite: bool = False
    """Whether a text tokenizer already in `output_dir` is replaced."""
