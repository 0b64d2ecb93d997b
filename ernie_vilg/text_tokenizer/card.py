"""The card of a text tokenizer: where it comes from, and how well it writes captions it never saw.

Programs read it from `text_tokenizer.json`; people read `README.md`, which holds the same.

Source: model cards (Mitchell et al. 2018, arXiv:1810.03993).
"""

from collections.abc import Mapping
from typing import Any

from ernie_vilg.system.markdown import card_in_markdown, markdown_table

_KINDS = {"sentencepiece": "SentencePiece model", "wordpiece": "WordPiece vocabulary"}
_COUNTS = {"captions": "captions", "characters": "characters, without spaces"}
_SHARES = {
    "character_coverage": "characters with a piece",
    "captions_with_byte_ids": "captions with a character in bytes",
    "byte_ids": "ids that are bytes",
    "unknown_ids": "ids that are unknown",
}
_NUMBERS = {
    "ids_per_character": "ids per character",
    "length_mean": "length, mean (ids, end of text included)",
    "length_p50": "length, 50th percentile",
    "length_p95": "length, 95th percentile",
    "length_p99": "length, 99th percentile",
    "length_max": "length, longest",
}

_CODE = """```python
from pathlib import Path

from ernie_vilg.text_tokenizer import TextTokenizer

tokenizer = TextTokenizer.load(Path("THIS FOLDER"))
ids = tokenizer.encode("一个红色的圆")
text = tokenizer.decode(ids)
```"""


def card_text(description: Mapping[str, Any]) -> str:
    """Return the card for people, in Markdown.

    Args:
        description: content of `text_tokenizer.json`.
    """
    origin = dict(description["made_from"])
    settings = origin.pop("settings", {})
    introduction = (
        f"A {_KINDS[description['kind']]} with {description['vocab_size']:,} ids: 0 to 3 are "
        "special (padding, unknown, begin and end of text), 4 to 259 are the bytes of characters "
        "without a piece, the others are pieces. Token shards name it by the SHA-256 "
        f"`{description['sha256']}`."
    )
    figures = markdown_table(_named(description["figures"]), otherwise="not measured")
    return card_in_markdown(
        "A text tokenizer",
        introduction,
        _CODE,
        {
            "Origin": markdown_table(_flat(origin), otherwise="not recorded"),
            "Figures": ["Measured on captions that it was not trained on.", "", *figures],
            "Settings": markdown_table(settings, otherwise="not recorded"),
        },
    )


def figure_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines for a terminal."""
    return [f"{name}: {value}" for name, value in _named(figures).items()]


def _named(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures under readable names."""
    if not figures:
        return {}
    fitting = figures["fits_text_length"]
    return {
        **{name: f"{figures[key]:,}" for key, name in _COUNTS.items()},
        **{name: f"{figures[key]:.4%}" for key, name in _SHARES.items()},
        **{name: f"{figures[key]:.4g}" for key, name in _NUMBERS.items()},
        **{f"captions whole in text_length={key}": f"{fitting[key]:.3%}" for key in fitting},
    }


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values under names with dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update({f"{name}.{inner}": one for inner, one in _flat(value).items()})
        else:
            found[name] = value
    return found
