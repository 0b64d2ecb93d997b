"""The text tokenizer: text to ids, and back. Its users import these names from here."""

from ernie_vilg.text_tokenizer.folder import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    MODEL_FILE,
    WORD_PIECE_FILE,
    read_vocab_size,
)
from ernie_vilg.text_tokenizer.tokenizer import TextTokenizer, write_text_tokenizer
from ernie_vilg.text_tokenizer.training import train_text_tokenizer

__all__ = [
    "DESCRIPTION_FILE",
    "FORMAT_VERSION",
    "MODEL_FILE",
    "WORD_PIECE_FILE",
    "TextTokenizer",
    "read_vocab_size",
    "train_text_tokenizer",
    "write_text_tokenizer",
]
