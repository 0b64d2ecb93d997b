"""Settings of the programs that make text tokenizers: training and import.

Source: SentencePiece's options (Kudo and Richardson 2018, arXiv:1808.06226).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import (
    FractionBelowOne,
    LocalInput,
    LocalOutput,
    NaturalInt,
    PositiveInt,
    Range,
    Settings,
)
from ernie_vilg.config.tokenizer_objective import Sha256
from ernie_vilg.vocabulary import NUM_RESERVED_IDS


@dataclass(frozen=True, kw_only=True)
class TrainTextTokenizerConfig(Settings):
    """Settings of launch/train_text_tokenizer.py."""

    shards: LocalInput
    """Folder of the image shards with the training captions."""
    output_dir: LocalOutput
    """Folder for `text_tokenizer.model`, `text_tokenizer.json` and the card `README.md`."""
    vocab_size: Annotated[
        int, Range(above=NUM_RESERVED_IDS, reason="special ids and bytes come first")
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
    sample_captions: PositiveInt = 1_000_000
    """Most training captions. More are read, and a sample of this size is drawn, in which each
    caption is as likely as any other. Memory grows with it, not with the number of captions."""
    max_caption_characters: Annotated[
        int, Range(at_least=1, at_most=1 << 18, reason="SentencePiece skips longer lines")
    ] = 4096
    """Characters after which a training caption is cut."""
    held_out_fraction: FractionBelowOne = 0.01
    """Fraction of the captions that the card is measured on instead of training; a caption's hash
    decides, so the same texts are held out for every seed. 0 measures nothing."""
    seed: NaturalInt = 0
    """Seed of the sample."""
    overwrite: bool = False
    """Whether a text tokenizer already in `output_dir` is replaced."""


@dataclass(frozen=True, kw_only=True)
class ImportTextTokenizerConfig(Settings):
    """Settings of launch/import_text_tokenizer.py."""

    vocabulary: LocalInput
    """WordPiece vocabulary to import: the vocab.txt of a BERT or ERNIE model."""
    vocabulary_sha256: Sha256 | None = None
    """SHA-256 of that file, which must match; null accepts any."""
    lower_case: bool = True
    """Whether letters become lower case, as the vocabulary was made for."""
    strip_accents: bool | None = None
    """Whether accents are removed; null does so with `lower_case`, as BERT does."""
    shards: LocalInput | None = None
    """Folder of image shards whose captions the card is measured on; null measures nothing."""
    output_dir: LocalOutput
    """Folder for `text_tokenizer.wordpiece.json`, `text_tokenizer.json` and the card
    `README.md`."""
    overwrite: bool = False
    """Whether a text tokenizer already in `output_dir` is replaced."""
