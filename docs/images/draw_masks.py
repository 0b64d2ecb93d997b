"""Draw the attention masks that docs/model.md shows, from the function that makes them all.

    python docs/images/draw_masks.py [folder]

Writes one picture per pattern and direction set, and one of the patterns' order in the layers.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks, pattern_of_block

CONFIG = ModelConfig(
    hidden_size=8,
    num_layers=48,
    num_heads=1,
    text_vocab_size=8,
    text_length=6,
    codebook_size=8,
    image_grid_size=8,
    attention="sparse",
    convolution_size=5,
)
"""A grid of 8 x 8 after 6 text slots. The 5 x 5 square stands for the 11 x 11 of 32 x 32."""

QUERY = 36
"""The image slot, in row 4 and column 4, whose view is drawn on the grid."""

# Okabe and Ito's colours, which colour-blind people tell apart; they differ in lightness too.
HIDDEN, TEXT, IMAGE, CENTRE = "#f4f4f4", "#e69f00", "#0072b2", "#d55e00"
INK = "#333333"
COLOURS = ListedColormap([HIDDEN, TEXT, IMAGE])
TITLES = {
    Direction.TEXT_TO_IMAGE: "text-to-image",
    Direction.IMAGE_TO_TEXT: "image-to-text",
}


def draw_pattern(config: ModelConfig, pattern: Pattern, path: Path) -> None:
    """Draw both directions of a pattern: query by key, and one image query's view of the grid."""
    figure, axes = pyplot.subplots(
        1, 4, figsize=(12, 4.5), width_ratios=(1, 0.62, 1, 0.62), layout="constrained"
    )
    for direction in Direction:
        matrix, view = axes[2 * direction], axes[2 * direction + 1]
        _draw_matrix(matrix, config, pattern, direction)
        _draw_view(view, config, pattern, direction)
    legend = [
        Patch(facecolor=TEXT, edgecolor=INK, label="sees a text slot"),
        Patch(facecolor=IMAGE, edgecolor=INK, label="sees an image slot"),
        Patch(facecolor=HIDDEN, edgecolor=INK, label="does not see"),
        Patch(
            facecolor="none",
            edgecolor=CENTRE,
            linewidth=2.5,
            label="the query that is drawn on the grid",
        ),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def _draw_matrix(axes: Axes, config: ModelConfig, pattern: Pattern, direction: Direction) -> None:
    """Draw which query (down) sees which key (across)."""
    mask, text = both_masks(config, pattern)[direction].numpy(), config.text_length
    kinds = np.where(np.arange(config.seq_length) < text, 1, 2)
    axes.imshow(mask * kinds, cmap=COLOURS, vmin=0, vmax=2, interpolation="nearest")
    for draw in (axes.axhline, axes.axvline):
        draw(text - 0.5, color=INK, linewidth=1)
        for row in range(1, config.image_grid_size):
            draw(text + row * config.image_grid_size - 0.5, color="white", linewidth=0.5)
    axes.add_patch(
        Rectangle(
            (-0.5, text + QUERY - 0.5),
            config.seq_length,
            1,
            fill=False,
            edgecolor=CENTRE,
            linewidth=2,
            zorder=3,  # above the lines between rows
        )
    )
    middles = [text / 2 - 0.5, text + config.num_image_slots / 2 - 0.5]
    axes.set_xticks(middles, ["text", "image slots as keys, row by row"])
    axes.set_yticks(middles, ["text", "image slots as queries"], rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_title(TITLES[direction], fontweight="bold")


def _draw_view(axes: Axes, config: ModelConfig, pattern: Pattern, direction: Direction) -> None:
    """Draw what one image query sees: the text slots above, the grid below."""
    text, grid = config.text_length, config.image_grid_size
    row = both_masks(config, pattern)[direction, text + QUERY].numpy()
    for slot in range(text):
        colour = TEXT if row[slot] else HIDDEN
        _draw_cell(axes, column=slot + (grid - text) / 2, row=-2, colour=colour)
    for slot in range(grid**2):
        colour = IMAGE if row[text + slot] else HIDDEN
        _draw_cell(axes, column=slot % grid, row=slot // grid, colour=colour)
    centre = Rectangle(
        (QUERY % grid, QUERY // grid), 1, 1, fill=False, edgecolor=CENTRE, linewidth=2.5
    )
    axes.add_patch(centre)
    axes.text(grid / 2, -2.3, "text", ha="center", va="bottom")
    axes.text(grid / 2, -0.25, "image", ha="center", va="bottom")
    axes.set_xlim(-0.1, grid + 0.1)
    axes.set_ylim(grid + 0.1, -3.3)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title("what this query sees", fontsize="medium")


def _draw_cell(axes: Axes, *, column: float, row: float, colour: str) -> None:
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor=INK, linewidth=0.6))


def draw_layers(config: ModelConfig, path: Path) -> None:
    """Draw which block has which pattern."""
    colours = {Pattern.ROW: "#56b4e9", Pattern.COLUMN: "#e69f00", Pattern.CONVOLUTION: "#009e73"}
    letters = {Pattern.ROW: "R", Pattern.COLUMN: "C", Pattern.CONVOLUTION: "K"}
    figure, axes = pyplot.subplots(figsize=(12, 1.5), layout="constrained")
    patterns = [pattern_of_block(config, index) for index in range(1, config.num_layers + 1)]
    for index, pattern in enumerate(patterns, start=1):
        _draw_cell(axes, column=index - 0.5, row=0, colour=colours[pattern])
        axes.text(index, 0.5, letters[pattern], ha="center", va="center", fontsize="small")
        if index % 4 == 2 or index in (1, config.num_layers):
            axes.text(index, 1.15, str(index), ha="center", va="top", fontsize="small")
    legend = [
        Patch(
            facecolor=colours[pattern],
            edgecolor=INK,
            label=f"{letters[pattern]}: {pattern.value}, {patterns.count(pattern)}",
        )
        for pattern in colours
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    axes.set_xlim(0.3, config.num_layers + 0.7)
    axes.set_ylim(1.6, -0.1)
    axes.set_axis_off()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    # Without the version of matplotlib, so that the file does not change with it.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def draw_all(folder: Path) -> list[Path]:
    """Draw every picture into a folder and return their paths."""
    blocks = replace(CONFIG, row_pattern="block")
    pictures = {
        "mask_full.png": (CONFIG, Pattern.FULL),
        "mask_row.png": (CONFIG, Pattern.ROW),
        "mask_row_block.png": (blocks, Pattern.ROW),
        "mask_column.png": (CONFIG, Pattern.COLUMN),
        "mask_convolution.png": (CONFIG, Pattern.CONVOLUTION),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (config, pattern) in pictures.items():
        draw_pattern(config, pattern, folder / name)
    draw_layers(CONFIG, folder / "layers.png")
    return [folder / name for name in (*pictures, "layers.png")]


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
