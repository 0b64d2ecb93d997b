"""Training of a SentencePiece model on captions.

Source: SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226).
"""

import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, END_OF_TEXT_ID, PADDING_ID, UNKNOWN_ID

_MAX_CAPTION_BYTES = 1 << 20  # SentencePiece silently skips longer ones; its default is 4192
_RESERVED = "\u2585"  # SentencePiece's mark for a rare character; it skips text that contains it
_LARGE_CORPUS = 1 << 30
"""Number of characters from which SentencePiece is told to count with 64 bits; it refuses 2^31."""
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
"""Message of SentencePiece, with the number of ids that are required."""

logger = logging.getLogger(__name__)


def train_text_tokenizer(captions: Iterable[str], config: TrainTextTokenizerConfig) -> bytes:
    """Train a SentencePiece model.

    The same captions and settings give the same model: SentencePiece runs on one thread, takes all
    these captions (`input_sentence_size=0`) and draws nothing.

    Args:
        captions: training text without line breaks; memory holds all of it. SentencePiece reserves
            U+2585; it is removed from captions that contain it, and their number is logged.
        config: size and kind of the vocabulary.

    Returns:
        the serialised model.

    Raises:
        InputError: SentencePiece cannot learn this vocabulary from these captions, or one of them
            is too long.
    """
    model, sample = io.BytesIO(), list(captions)
    _check_sizes(sample)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(sample),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            max_sentencepiece_length=config.max_piece_length,
            max_sentence_length=_MAX_CAPTION_BYTES,
            input_sentence_size=0,
            train_extremely_large_corpus=sum(map(len, sample)) >= _LARGE_CORPUS,
            hard_vocab_limit=False,  # few captions may have fewer pieces than asked for
            byte_fallback=True,
            normalization_rule_name="nfkc",
            add_dummy_prefix=False,  # no space before the first character: Chinese has none
            pad_id=PADDING_ID,
            unk_id=UNKNOWN_ID,
            bos_id=BEGIN_OF_TEXT_ID,
            eos_id=END_OF_TEXT_ID,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _cannot_learn(config, error) from error
    return model.getvalue()


def _cannot_learn(config: TrainTextTokenizerConfig, error: RuntimeError) -> InputError:
    given = f"vocab_size={config.vocab_size}, character_coverage={config.character_coverage}"
    if (needed := _TOO_SMALL.search(str(error))) is not None:
        return InputError(
            f"{given}: the characters and bytes of these captions alone take {needed[1]} ids: "
            f"set vocab_size to at least {needed[1]}, or a smaller character_coverage, which "
            "writes the rarest characters as bytes (three ids each in Chinese)"
        )
    return InputError(
        f"{given}: SentencePiece cannot learn it from these captions ({error}); set a larger "
        "vocab_size, a smaller character_coverage, or name shards with more captions"
    )


def _check_sizes(captions: Sequence[str]) -> None:
    for caption in captions:
        # A character has at most four bytes.
        if 4 * len(caption) > _MAX_CAPTION_BYTES and len(caption.encode()) > _MAX_CAPTION_BYTES:
            raise InputError(
                f"a caption has {len(caption.encode()):,} bytes ({caption[:40]!r}...), at most "
                f"{_MAX_CAPTION_BYTES:,} are allowed: shorten it"
            )


def _sentences(captions: Sequence[str]) -> Iterator[str]:
    """Yield captions in a form that SentencePiece accepts; it silently drops others."""
    num_reserved = 0
    for caption in captions:
        num_reserved += _RESERVED in caption
        yield from filter(None, caption.split(_RESERVED))
    if num_reserved:
        logger.warning(
            "%d captions contain U+2585, which SentencePiece reserves: it is removed from the "
            "training text and will be encoded as bytes",
            num_reserved,
        )
