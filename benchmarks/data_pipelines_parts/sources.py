"""Raw pairs of two kinds: drawn photographs, and emoji."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

_SIZE = (640, 480)
_DISTINCT = 64
"""Pictures that are drawn; the others are these, each with a mark of its own."""
_CAPTIONS = (
    "一只猫坐在红色的沙发上",
    "海边的日落和两艘小船",
    "城市夜景中的高楼大厦",
    "桌上放着一杯咖啡",
)


def make_photographs(folder: Path, count: int) -> Path:
    """Write JPEG files of 640 x 480 pixels, about 100 kB each, and captions.jsonl.

    Args:
        folder: folder to make; kept as it is where it has as many pictures.
        count: number of pairs.
    """
    captions = folder / "captions.jsonl"
    if captions.is_file() and captions.read_text(encoding="utf-8").count("\n") == count:
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    drawn = [_photograph(seed) for seed in range(_DISTINCT)]
    lines = []
    for number in range(count):
        picture = drawn[number % _DISTINCT].copy()
        mark = Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, 128))
        picture.paste(mark, (number * 37 % 600, number * 53 % 450))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        name = f"images/{number:06d}.jpg"
        (folder / name).write_bytes(buffer.getvalue())
        caption = f"{_CAPTIONS[number % len(_CAPTIONS)]}{number}"
        lines.append(json.dumps({"image": name, "caption": caption}, ensure_ascii=False))
    captions.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _photograph(seed: int) -> Image.Image:
    """Return a picture with shapes of all sizes and some grain, as photographs have."""
    generator = np.random.default_rng(seed)
    layers = np.zeros((_SIZE[1], _SIZE[0], 3))
    for side in (4, 16, 64, 160):
        cells = generator.normal(0, 60 / np.sqrt(side / 4), (side * 3 // 4, side, 3))
        colours = np.clip(cells + 128, 0, 255).astype(np.uint8)
        layer = Image.fromarray(colours).resize(_SIZE, Image.Resampling.BICUBIC)
        layers += np.asarray(layer, np.float64) - 128
    grain = generator.normal(0, 4, layers.shape)
    picture = Image.fromarray(np.clip(layers + grain + 128, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.SMOOTH)


def make_small_pictures(folder: Path, count: int) -> Path:
    """Write PNG files of 64 x 64 pixels of noise, no two of them alike, and captions.jsonl."""
    captions = folder / "captions.jsonl"
    if captions.is_file():
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        cells = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        name = f"images/{number:06d}.png"
        Image.fromarray(cells).resize((64, 64)).save(folder / name)
        caption = f"{_CAPTIONS[number % len(_CAPTIONS)]}{number}"
        lines.append(json.dumps({"image": name, "caption": caption}, ensure_ascii=False))
    captions.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder
