"""The masks in docs/model.md are those of the current model, and no picture is unused."""

import importlib.util
import re
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs/images"
DIFFERENT_SHARE = 0.005  # of pixels: allows edges of another version, but no other mask


def coloured(path: Path) -> np.ndarray:
    """Return the coloured pixels: the masks, but not the letters, whose shapes vary."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.int16)
    return np.ptp(pixels, axis=-1) > 64


def test_pictures_are_those_that_the_script_draws_now(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("draw_masks", FOLDER / "draw_masks.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    drawn = script.draw_all(tmp_path)

    assert {path.name for path in FOLDER.glob("mask_*.png")} < {path.name for path in drawn}
    for path in drawn:
        now, committed = coloured(path), coloured(FOLDER / path.name)
        assert now.shape == committed.shape, f"{path.name}: run docs/images/draw_masks.py"
        assert (now != committed).mean() < DIFFERENT_SHARE, (
            f"{path.name}: run docs/images/draw_masks.py"
        )


def test_every_picture_is_shown_on_some_page() -> None:
    pages = [page.read_text(encoding="utf-8") for page in FOLDER.parent.glob("*.md")]

    shown = [name for page in pages for name in re.findall(r"\(images/([^)]+)\)", page)]

    assert sorted(shown) == sorted(path.name for path in FOLDER.glob("*.png"))
