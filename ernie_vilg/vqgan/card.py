"""The card of an image tokenizer: where it comes from, how good it is, how often its codes occur.

Programs read it from `image_tokenizer.json`; people read `README.md`, which holds the same.

Source: model cards (Mitchell et al. 2018, arXiv:1810.03993).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.system.markdown import card_in_markdown, markdown_table

FIGURES = {
    "psnr": ("PSNR", "dB"),
    "ssim": ("SSIM", ""),
    "lpips": ("LPIPS", ""),
    "rfid": ("rFID", ""),
    "codebook_usage": ("used codes", "of all"),
    "perplexity": ("perplexity of the codes", "codes"),
}
"""Name and unit of the figures that a card shows first, by key."""

_CODE = """```python
from pathlib import Path

from ernie_vilg.vqgan.weights import load_image_tokenizer

tokenizer, sha256 = load_image_tokenizer(Path("THIS FOLDER"))
# float32 [batch, 3, {size}, {size}] in [-1, 1] -> int64 [batch, {grid}, {grid}]
codes = tokenizer.encode(images)
pictures = tokenizer.decode(codes)
```"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about an image tokenizer beside its weights and settings, as JSON values."""

    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the weights: shards, run, step, average; or the file that was imported."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Measured figures by key; keys of `FIGURES` where they are these."""
    code_counts: Sequence[int] | None = None
    """Uses of each code on the pictures of the figures; None where nobody counted."""


def card_to_json(card: Card) -> dict[str, Any]:
    """Return the JSON values of a card."""
    counts = None if card.code_counts is None else [int(count) for count in card.code_counts]
    return {"lineage": dict(card.lineage), "figures": dict(card.figures), "code_counts": counts}


def card_from_json(content: Mapping[str, Any], config: ImageTokenizerConfig, name: str) -> Card:
    """Return the card that JSON values describe.

    Args:
        content: the values, from `card_to_json`.
        config: architecture, for the number of codes.
        name: name of the file, for messages.

    Raises:
        InputError: a value is of another kind.
    """
    lineage, figures = content.get("lineage", {}), content.get("figures", {})
    counts = content.get("code_counts")
    is_counted = counts is None or (
        isinstance(counts, list)
        and len(counts) == config.codebook_size
        and all(type(count) is int and count >= 0 for count in counts)
    )
    is_measured = isinstance(figures, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in figures.values()
    )
    if not (isinstance(lineage, dict) and is_measured and is_counted):
        raise InputError(
            f"{name}: lineage, figures or code_counts was edited: lineage is an object, figures "
            f"are numbers by name, and code_counts are {config.codebook_size} whole numbers or "
            "null; copy the whole folder again"
        )
    return Card(lineage=lineage, figures=figures, code_counts=counts)


def card_text(card: Card, config: ImageTokenizerConfig, sha256: str) -> str:
    """Return a card for people, in Markdown.

    Args:
        card: the facts.
        config: architecture.
        sha256: hash that identifies the tokenizer.
    """
    factor, size, grid = config.downsampling_factor, config.image_size, config.grid_size
    introduction = (
        f"A VQGAN that turns pictures of {size}x{size} pixels into {grid}x{grid} codes "
        f"(f = {factor}) out of {config.codebook_size:,}, and back. Token shards name it by the "
        f"SHA-256 `{sha256}`."
    )
    return card_in_markdown(
        "An image tokenizer",
        introduction,
        _CODE.format(size=size, grid=grid),
        {
            "Origin": markdown_table(card.lineage, otherwise="not recorded"),
            "Figures": markdown_table(_named_figures(card), otherwise="not measured"),
            "Settings": markdown_table(vars(config), otherwise="none"),
        },
    )


def _named_figures(card: Card) -> dict[str, Any]:
    """Return the figures under readable names, the known ones first."""
    known = {
        f"{name} ({unit})" if unit else name: f"{card.figures[key]:.4g}"
        for key, (name, unit) in FIGURES.items()
        if key in card.figures
    }
    others = {key: value for key, value in card.figures.items() if key not in FIGURES}
    counted = {}
    if card.code_counts is not None:
        counted["counted codes"] = f"{sum(card.code_counts):,}"
    return {**known, **others, **counted}
