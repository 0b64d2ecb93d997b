"""Pictures of whole-number arithmetic, whose PDQ hashes are stored.

`pdq_hashes.json` has what the package pdqhash 0.2.8 returns for them: 64 hexadecimal digits, most
significant bits first, and the quality.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FILE = Path(__file__).with_name("pdq_hashes.json")
_SIZES = (
    *((5, 5), (7, 90), (30, 20), (64, 64), (63, 65), (128, 128), (129, 127), (200, 129)),
    *((256, 256), (300, 257), (400, 300), (640, 480), (641, 479), (90, 1290), (6, 5400)),
)


def stored_hashes() -> dict[str, tuple[str, int]]:
    """Return the hashes and qualities of the package by the picture's name."""
    stored = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: (digits, quality) for name, (digits, quality) in stored.items()}


def pictures() -> dict[str, Image.Image]:
    """Return the pictures by name."""
    found = {}
    for width, height in _SIZES:
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        u, v = x * 1024 // width, y * 1024 // height
        kinds = {
            "blocks": [_noise(u // 90 + 64 * (v // 70) + 4096 * band) for band in range(3)],
            "disc": [
                np.where(
                    (u - 400) ** 2 + (v - 620) ** 2 < 300**2, colour, u * 200 // 1024 + v // 40
                )
                for colour in (230, 40, 90)
            ],
            "grain": [
                _noise(u // 200 + 64 * (v // 130)) * 3 // 4 + _noise(x + 8192 * y + band) // 4
                for band in range(3)
            ],
        }
        for kind, bands in kinds.items():
            pixels = np.stack(bands, axis=2).astype(np.uint8)
            found[f"{kind}-{width}x{height}"] = Image.fromarray(pixels)
    return found


def _noise(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a grey level from 0 to 255 for every cell's number."""
    values = cells.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (values >> np.uint64(56)).astype(np.int64)
