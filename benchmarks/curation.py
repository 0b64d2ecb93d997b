"""Cost of the rules for captions and pictures, beside preparing the same pictures with Pillow.

    python benchmarks/curation.py           # half a minute
    python benchmarks/curation.py --quick   # shows that it works

Each rule that needs no model alone, all of those for captions together, and decoding, cropping,
resizing to 64 pixels and encoding as PNG, on 1,105 of the 3,315 emoji with Chinese names. One
process; processor time per row, the fastest of five passes that take turns. Every caption of this
data goes through all rules, because the thresholds reject none.

Prints the table and writes outputs/benchmarks/curation.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.support.results import Requirement, print_requirements, write_results
from data_pipelines.curation.curator import Curator
from data_pipelines.images import crop_and_resize, image_bytes, load_image
from ernie_vilg.config.curation import CurationConfig, Rules

PREPARE = "Pillow: decode, resize, encode"
ALL = "all rules for captions"
CAPTION_RULES: dict[str, dict[str, Any]] = {
    "to_simplified": {"to_simplified": True},
    "max_characters": {"max_characters": 64},
    "special_characters": {"special_characters": "refuse"},
    "min_han_share": {"min_han_share": 0.0},
    "languages": {"languages": ("zh", "en")},
    "max_words": {"max_words": 100},
}
PICTURE_RULES: dict[str, dict[str, Any]] = {
    "min_side, max_aspect_ratio": {"min_side": 1, "max_aspect_ratio": 100.0},
    "min_contrast": {"min_contrast": 0.001},
}

Task = Callable[[], object]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows, one pass")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/noto-emoji"))
    options = parser.parse_args()
    lines = (options.data / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: 100 if options.quick else 3]]
    captions = [row["caption"] for row in rows]
    paths = [options.data / row["image"] for row in rows]

    seconds = fastest(tasks(captions, paths), passes=1 if options.quick else 5)
    micros = {name: 1e6 * value / len(rows) for name, value in seconds.items()}
    for name, value in micros.items():
        print(f"{name:32}{value:10.1f} us a row{1e6 / value:12,.0f} rows/s per core")
    share = Requirement(
        what="all rules for captions, share of Pillow's time",
        value=100 * micros[ALL] / micros[PREPARE],
        bound=5,
        unit="%",
        is_lower_better=True,
    )
    print_requirements([share], quick=options.quick)
    results = {"microseconds_per_row": micros, "percent": share.value}
    write_results("curation", results, quick=options.quick)


def tasks(captions: list[str], paths: list[Path]) -> dict[str, Task]:
    """Return what is measured, by name."""
    every = {key: value for rules in CAPTION_RULES.values() for key, value in rules.items()}
    images = [load_image(path, max_pixels=1 << 26) for path in paths]

    def check_captions(rules: dict[str, Any]) -> Task:
        curator = Curator(CurationConfig(), Rules(**rules))
        return lambda: [curator.check_caption(caption) for caption in captions]

    def check_pictures(rules: dict[str, Any]) -> Task:
        curator = Curator(CurationConfig(), Rules(**rules))
        return lambda: [curator.check_picture(image, is_animated=False) for image in images]

    return {
        PREPARE: lambda: [prepare(path) for path in paths],
        "no rule for captions": check_captions({}),
        **{name: check_captions(rules) for name, rules in CAPTION_RULES.items()},
        ALL: check_captions(every),
        "no rule for pictures": check_pictures({}),
        **{name: check_pictures(rules) for name, rules in PICTURE_RULES.items()},
    }


def prepare(path: Path) -> bytes:
    """Return a picture file as the PNG of a shard."""
    return image_bytes(crop_and_resize(load_image(path, max_pixels=1 << 26), 64), "png")


def fastest(measured: dict[str, Task], *, passes: int) -> dict[str, float]:
    """Return each task's least processor time, seconds."""
    seconds = dict.fromkeys(measured, float("inf"))
    for _ in range(passes):
        for name, task in measured.items():
            start = time.process_time()
            task()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
