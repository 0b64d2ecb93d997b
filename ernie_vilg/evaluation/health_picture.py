"""The picture of a health measurement: bars, and below them the round trips of each pair.

    picture           drawn from its caption      drawn from the caption written for it
    its caption       written for the drawing     written for the picture

Captions use an installed font that has all their characters. Without such a font the picture shows
the numbers of the pairs, and the JSON file beside it has the captions.
"""

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ernie_vilg.evaluation.charts import COLOURS

MAX_ROWS = 8
"""Largest number of pairs on one picture."""

_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
)
_TITLES = ("picture", "drawn from its caption", "from the written one")
_PAIRS_PER_ROW = 2
_WIDTH_INCHES = 11.0
_CHART_INCHES = 2.6
_ROW_INCHES = 2.2
_CAPTION_COLUMNS = 30  # of a Latin letter's width
_CAPTION_LINES = 3


@dataclass(frozen=True, kw_only=True)
class HealthRow:
    """One pair and its round trips."""

    pictures: tuple[Image.Image, Image.Image, Image.Image]
    """The true picture, the one drawn from the true caption, the one drawn from the written
    caption."""
    captions: tuple[str, str, str]
    """The true caption, the one written for the first drawing, the one written for the true
    picture. Each stands below the picture of the same index."""


def health_picture(
    rows: Sequence[HealthRow],
    *,
    title: str,
    cosines: Mapping[str, float],
    likelihoods: Mapping[str, tuple[float, float]],
) -> bytes:
    """Draw a measurement.

    Args:
        rows: the pairs; only the first MAX_ROWS are drawn.
        title: heading, ASCII.
        cosines: cosine of the gradients of both directions, by part of the model.
        likelihoods: mean log-likelihoods in nats by target, given the true source and given the
            source after the round trip.

    Returns:
        a PNG file.
    """
    rows = rows[:MAX_ROWS]
    font = font_for("".join(caption for row in rows for caption in row.captions))
    settings = {"font.family": "DejaVu Sans" if font is None else font, "font.size": 8}
    num_rows = math.ceil(len(rows) / _PAIRS_PER_ROW)
    heights = (_CHART_INCHES, num_rows * _ROW_INCHES)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
        ((charts,), (pictures,)) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
        left, right = charts.subplots(1, 2)
        _draw_cosines(left, cosines)
        _draw_likelihoods(right, likelihoods)
        columns = _PAIRS_PER_ROW * len(_TITLES)
        cells = pictures.subplots(num_rows, columns, squeeze=False).flatten()
        for cell in cells[len(rows) * len(_TITLES) :]:
            cell.set_axis_off()
        for index, row in enumerate(rows):
            _draw_row(cells[index * len(_TITLES) :], index, row, has_font=font is not None)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def font_for(text: str) -> str | None:
    """Return the first known installed font that has every character, or None."""
    wanted = {ord(character) for character in text if not character.isspace()}
    installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    for name in _FONTS:
        if name in installed and wanted <= set(
            font_manager.get_font(installed[name]).get_charmap()
        ):
            return name
    return None


def _draw_row(cells: Sequence[Axes], index: int, row: HealthRow, *, has_font: bool) -> None:
    for axes, name, image, caption in zip(cells, _TITLES, row.pictures, row.captions, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        if index < _PAIRS_PER_ROW:
            axes.set_title(name, fontsize=8, fontweight="bold")
        shown = wrapped(caption) if has_font else f"pair {index + 1}"
        # A dollar sign would begin a formula.
        axes.set_xlabel(shown.replace("$", r"\$") or "(empty)", fontsize=7)


def wrapped(caption: str) -> str:
    """Break a caption into a few lines that fit under a picture.

    A Chinese character is two columns wide.
    """
    lines, width = [""], 0
    for character in caption:
        columns = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width + columns > _CAPTION_COLUMNS:
            lines.append("")
            width = 0
        lines[-1] += character
        width += columns
    return "\n".join(lines[:_CAPTION_LINES])


def _draw_cosines(axes: Axes, cosines: Mapping[str, float]) -> None:
    names = [name.replace("_", " ") for name in cosines]
    colours = [COLOURS[3] if value >= 0 else COLOURS[2] for value in cosines.values()]
    axes.barh(names, list(cosines.values()), color=colours)
    axes.invert_yaxis()
    axes.axvline(0, color=COLOURS[0], linewidth=0.8)
    axes.set_xlim(-1, 1)
    axes.set_title("cosine of both directions' gradients", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_likelihoods(axes: Axes, likelihoods: Mapping[str, tuple[float, float]]) -> None:
    places = range(len(likelihoods))
    for offset, (label, index, colour) in enumerate(
        (("given the true source", 0, COLOURS[1]), ("after the round trip", 1, COLOURS[2]))
    ):
        axes.barh(
            [place + 0.36 * offset for place in places],
            [values[index] for values in likelihoods.values()],
            height=0.34,
            color=colour,
            label=label,
        )
    axes.set_yticks([place + 0.18 for place in places], list(likelihoods))
    axes.invert_yaxis()
    axes.set_title("log-likelihood, nats per token", fontsize=9, loc="left")
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
