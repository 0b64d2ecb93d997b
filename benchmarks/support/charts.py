"""The look of all charts, drawn with matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display
from matplotlib import pyplot
from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people tell apart; they differ in lightness too.
OURS, SECOND, BASELINE, LIMIT = "#0072b2", "#56b4e9", "#e69f00", "#d55e00"
INK, PALE = "#333333", "#e5e7eb"


@contextmanager
def panels(path: Path, height: float, widths: Any) -> Iterator[list[Axes]]:
    """Yield panels side by side and write them as a picture.

    Args:
        path: PNG file to write.
        height: of the picture, in inches; it is 12 wide.
        widths: of the panels, relative to each other.
    """
    settings = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}
    with mpl.rc_context(settings):
        figure, axes = pyplot.subplots(
            1, len(widths), figsize=(12, height), width_ratios=widths, layout="constrained"
        )
        yield list(axes)
        figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
