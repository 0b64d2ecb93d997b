"""The page of an image tokenizer's evaluation, and the pictures of its codes."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.evaluation.count_charts import rank_chart
from ernie_vilg.evaluation.grid import picture_grid
from ernie_vilg.evaluation.page import render

PATCHES = 5
"""Number of places in originals that are shown of each code."""
_TILE_SIZE = 72
_CELLS = 3
_MOST_POINTS = 500
_PUBLISHED_PICTURES = 50_000
"""Number of pictures of published rFIDs; an rFID of fewer pictures is larger."""


_ORIGINS = {
    True: "The tokenizer was trained on these pictures, so its figures flatter.",
    False: "The tokenizer was trained on other shards.",
    None: "Its card does not name the shards that it was trained on.",
}
"""Sentence by whether the pictures were trained on."""


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """One picture and its reconstruction."""

    key: str
    """Key of its sample."""
    psnr: float
    """PSNR, dB."""
    before: Image.Image
    """Original."""
    after: Image.Image
    """Reconstruction."""


@dataclass(frozen=True, kw_only=True)
class CodeRow:
    """One code, as a row of pictures."""

    code: int
    uses: int
    """Number of uses in all pictures."""
    tiles: tuple[Image.Image, ...]
    """The code drawn alone, then places of originals that have it, all of one size."""


def code_tiles(
    alone: Image.Image,
    originals: Sequence[Image.Image],
    cells: Sequence[tuple[int, int]],
    *,
    factor: int,
) -> tuple[Image.Image, ...]:
    """Cut the tiles of a code's row.

    Args:
        alone: picture of a grid that holds the code everywhere.
        originals: pictures that have the code, at most `PATCHES`.
        cells: row and column of the code in each.
        factor: pixels per side of a code's square.

    Returns:
        the centre of `alone`; the code's square of each original with a margin of its size, shifted
        into the picture at edges; and empty tiles up to `PATCHES`.
    """
    middle = alone.width // factor // 2
    parts = [_part(alone, middle, middle, factor)]
    parts += [
        _part(original, row, column, factor)
        for original, (row, column) in zip(originals, cells, strict=True)
    ]
    size = (_TILE_SIZE, _TILE_SIZE)
    tiles = [part.resize(size, Image.Resampling.NEAREST) for part in parts]
    tiles += [Image.new("RGB", size, "white")] * (1 + PATCHES - len(tiles))
    return tuple(tiles)


def _part(image: Image.Image, row: int, column: int, factor: int) -> Image.Image:
    side = min(_CELLS * factor, image.width)
    margin = (side - factor) // 2
    left, top = (min(max(at * factor - margin, 0), image.width - side) for at in (column, row))
    return image.crop((left, top, left + side, top + side))


def code_grid(rows: Sequence[CodeRow]) -> Image.Image:
    """Return the rows of several codes as one picture."""
    return picture_grid([tile for row in rows for tile in row.tiles], columns=1 + PATCHES)


def page_html(
    content: Mapping[str, Any],
    *,
    config: ImageTokenizerConfig,
    kinds: Mapping[str, Sequence[Rebuilt]],
    codes: Mapping[str, Sequence[CodeRow]],
) -> str:
    """Return the whole page.

    Args:
        content: content of `figures.json`.
        config: architecture of the tokenizer.
        kinds: reconstructions by kind: "worst", "median" and "best".
        codes: codes by kind: "most_used" and "least_used".
    """
    counts = content["code_counts"]
    return render(
        "ernie_vilg.evaluation",
        "image_tokenizer.html",
        title="Evaluation of an image tokenizer",
        origin=_ORIGINS[content["trained_on"]],
        tokenizer=f"{config.image_size} x {config.image_size} pixels to {config.grid_size} x "
        f"{config.grid_size} codes out of {config.codebook_size:,}",
        sha256=content["weights"],
        precision=content["precision"],
        cards=_cards(content),
        damaged=content["damaged_pictures"],
        kinds=kinds,
        codes=codes,
        total=sum(counts),
        chart=_chart(counts).encode(),
        png=_png,
        strip=lambda row: _png(picture_grid(row.tiles, columns=1 + PATCHES)),
    )


def _cards(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, figure and meaning of each card."""
    figures = content["figures"]
    pictures = f"{figures['pictures']:,} pictures"
    cards = [("PSNR", f"{figures['psnr']:.2f} dB", f"{_interval(content, 'psnr')}; {pictures}")]
    if "ssim" in figures:
        cards.append(("SSIM", f"{figures['ssim']:.4f}", _interval(content, "ssim")))
    what = "gradient energy of the reconstructions, of the originals'"
    cards.append(("Sharpness", f"{100 * figures['gradient_energy']:.1f} %", what))
    for name, key in (("LPIPS", "lpips"), ("rFID", "rfid")):
        if key not in figures:
            cards.append(
                (name, "not measured", content["not_measured"].get(key, "too few pictures"))
            )
        elif key == "lpips":
            cards.append((name, f"{figures[key]:.4f}", _interval(content, key)))
        else:
            few = f", fewer than the {_PUBLISHED_PICTURES:,} of published figures"
            is_few = figures["pictures"] < _PUBLISHED_PICTURES
            cards.append((name, f"{figures[key]:.2f}", pictures + few * is_few))
    usage, dead = figures["codebook_usage"], figures["dead_codes"]
    cards.append(("Used codes", f"{100 * usage:.1f} %", f"{dead:,} codes are used by no picture"))
    what = "equally frequent codes would carry as much information"
    cards.append(("Perplexity", f"{figures['perplexity']:.1f}", what))
    return cards


def _interval(content: Mapping[str, Any], key: str) -> str:
    low, high = content["intervals"][key]
    digits = 2 if key == "psnr" else 4
    return f"95 % interval {low:.{digits}f} to {high:.{digits}f}"


def _chart(counts: Sequence[int]) -> str:
    total = sum(counts)
    shares = sorted((count / total for count in counts), reverse=True)
    last = len(shares) - 1
    points = min(_MOST_POINTS, len(shares))
    thinned = [shares[round(last * at / max(points - 1, 1))] for at in range(points)]
    return rank_chart(thinned, total=len(shares), title="Uses of codes by rank")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
