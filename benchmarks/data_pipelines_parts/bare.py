"""Bare work on pictures: decode, resize, encode with Pillow, in some processes.

    python -m benchmarks.data_pipelines_parts.bare FOLDER IMAGE_SIZE FORMAT WORKERS

Nothing is read but the files of captions.jsonl, and nothing is written.
"""

import io
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image


def prepare(paths: list[Path], size: int, kind: str) -> int:
    """Prepare pictures; return the bytes of the results."""
    total = 0
    for path in paths:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        square = image.resize(
            (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
        )
        buffer = io.BytesIO()
        if kind == "JPEG":
            square.save(buffer, kind, quality=95)
        else:
            square.save(buffer, kind)
        total += buffer.tell()
    return total


def main() -> None:
    """Prepare every picture of a folder of pairs."""
    folder, size, kind, workers = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    paths = [folder / json.loads(line)["image"] for line in lines]
    tasks = [paths[first : first + 256] for first in range(0, len(paths), 256)]
    with ProcessPoolExecutor(workers) as pool:
        done = [pool.submit(prepare, task, size, kind) for task in tasks]
        print(sum(each.result() for each in done), "bytes")


if __name__ == "__main__":
    main()
