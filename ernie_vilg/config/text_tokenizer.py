"""Settings of text tokenizer training.

Source: the options are SentencePiece's (Kudo and Richardson 2018, arXiv:1808.06226).
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_input, check_local_output
from ernie_vilg.vocabulary import NUM_BYTES, NUM_SPECIAL_IDS

MODEL_TYPES = ("unigram", "bpe")


@dataclass(frozen=True, kw_only=True)
class TrainTextTokenizerConfig:
    """What `launch/train_text_tokenizer.py` learns from, and what it learns."""

    shards: str
    """Folder of image shards whose captions are learned from."""
    output_dir: str
    """Folder to write: `text_tokenizer.model` and `text_tokenizer.json`."""
    vocab_size: int = 16384
    """Most ids, with 4 special ones and 256 bytes. Fewer where the captions hold no more
    pieces."""
    model_type: str = "unigram"
    """unigram (pieces chosen by likelihood) or bpe (pieces merged pair by pair)."""
    character_coverage: float = 0.9995
    """Share of the captions' characters that get a piece of their own; rarer ones become
    bytes."""
    max_piece_length: int = 16
    """Most characters in a piece. Formulaic captions need a small one: without spaces between
    words nothing else keeps whole phrases from becoming one piece."""
    max_captions: int | None = None
    """Captions learned from, taken at even distances; null takes all."""
    overwrite: bool = False
    """Whether a text tokenizer already in `output_dir` is replaced."""

    def __post_init__(self) -> None:
        check_local_input(shards=self.shards)
        check_local_output(output_dir=self.output_dir)
        smallest = NUM_SPECIAL_IDS + NUM_BYTES + 1
        if self.vocab_size < smallest:
            raise InputError(
                f"vocab_size={self.vocab_size}: set at least {smallest}, because "
                f"{NUM_SPECIAL_IDS} special ids and {NUM_BYTES} bytes come first"
            )
        if self.model_type not in MODEL_TYPES:
            raise InputError(
                f"model_type={self.model_type}: choose one of {', '.join(MODEL_TYPES)}"
            )
        if not 0 < self.character_coverage <= 1:
            raise InputError(
                f"character_coverage={self.character_coverage}: set a share above 0 and up to 1"
            )
        if self.max_piece_length < 1:
            raise InputError(f"max_piece_length={self.max_piece_length}: set at least 1")
        if self.max_captions is not None and self.max_captions < 1:
            raise InputError(
                f"max_captions={self.max_captions}: set at least 1, or null for all captions"
            )
