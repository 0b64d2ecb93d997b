"""Rate of the models of curation on one core, at real shapes, with random weights.

    python benchmarks/scorers.py              # all of them, two minutes on a quiet machine
    python benchmarks/scorers.py --only text  # or similarity, classifier, translation

Pictures have 640 x 480 pixels, as the middle of a crawl has; captions 14 characters, translations
20 tokens. Times are processor times of one thread, preparation of the input included. Prints a
table and writes outputs/benchmarks/scorers.json.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.scorers_parts.models import (
    LETTERS,
    write_chinese_clip,
    write_classifier,
    write_translation_model,
)
from benchmarks.support.results import shown, write_results
from benchmarks.support.tables import header, row
from benchmarks.support.timing import Stopwatch
from data_pipelines.curation.models import translation
from data_pipelines.curation.models.classifier import ClassifierScorer
from data_pipelines.curation.models.clip import ClipScorer
from data_pipelines.curation.models.folder import ModelFolder
from data_pipelines.curation.models.text_in_pictures import TextDetector
from data_pipelines.curation.models.translation import ModelTranslator

Run = tuple[str, int, Callable[[], object]]
"""Name, number of samples, and what handles them."""

_PAIRS = 16
_CAPTION = "左上角有一个红色的大圆形物体"
_TOKENS_OF_TRANSLATION = 20


def photograph() -> Image.Image:
    """Return a photograph of 640 x 480 pixels without text."""
    image = Image.open(Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg"))
    return image.convert("RGB").crop((0, 0, 512, 384)).resize((640, 480))


def with_text(image: Image.Image) -> Image.Image:
    """Return a copy with one line of text."""
    marked = image.copy()
    font = ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 24)
    ImageDraw.Draw(marked).text((320, 450), "www.example.com", font=font, anchor="mm")
    return marked


def similarity(folder: Path) -> list[Run]:
    """Return the scoring of pairs."""
    model = ModelFolder(path=write_chinese_clip(folder / "clip"), setting="similarity_model")
    scorer, images = ClipScorer(model, device="cpu"), [photograph() for _ in range(_PAIRS)]
    score = partial(scorer.score, images, [_CAPTION] * _PAIRS)
    return [("similarity, ChineseCLIP ViT-B/16", _PAIRS, score)]


def classifier(folder: Path) -> list[Run]:
    """Return the scoring of pictures."""
    model = ModelFolder(path=write_classifier(folder / "classifier"), setting="nsfw_model")
    scorer = ClassifierScorer(model, labels=("nsfw",), device="cpu")
    score = partial(scorer.score, [photograph() for _ in range(_PAIRS)])
    return [("NSFW or watermark, ViT-B/16", _PAIRS, score)]


def text(_: Path) -> list[Run]:
    """Return the search for text in pictures."""
    detector = TextDetector()
    return [
        ("text in pictures, none there", 1, partial(detector.area, photograph())),
        ("text in pictures, one line", 1, partial(detector.area, with_text(photograph()))),
    ]


def translating(folder: Path) -> list[Run]:
    """Return translations by the same model, float32 and int8, alone and in batches."""
    runs: list[Run] = []
    for quantization in (None, "int8"):
        name = quantization or "float32"
        path = write_translation_model(folder / name, quantization=quantization)
        model = ModelFolder(path=path, setting="translation_model")
        translator = ModelTranslator(model, prefix=None, device="cpu")
        captions = [LETTERS[:14]] * _PAIRS
        runs += [
            (f"translation, base {name}, batches of 16", _PAIRS,
             partial(translator.translate, captions)),
            (f"translation, base {name}, one by one", 1,
             partial(translator.translate, captions[:1])),
        ]  # fmt: skip
    return runs


PARTS = {
    "similarity": similarity,
    "classifier": classifier,
    "text": text,
    "translation": translating,
}


def measured(run: Run, repeats: int) -> dict[str, Any]:
    """Print and return the rate of a run on one core; the first time only warms up."""
    name, num_samples, handle = run
    seconds = []
    for _ in range(repeats + 1):
        watch = Stopwatch()
        handle()
        seconds.append(float(watch.per_sample(num_samples)["processor"]))
    middle = statistics.median(seconds[1:])
    print(row([name, shown(1e3 * middle), shown(1 / middle)]), flush=True)
    return {"metric": name, "value": 1 / middle, "unit": "1/s", "seconds": seconds[1:]}


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="one kind of model")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each")
    options = parser.parse_args()
    print(header(["model", "ms per sample", "samples per second and core"]))
    figures = []
    # Random weights end no sentence, so that the limit is the length.
    limit = patch.object(translation, "_MOST_TOKENS", _TOKENS_OF_TRANSLATION)
    for name in [options.only] if options.only else PARTS:
        with limit, tempfile.TemporaryDirectory() as folder:
            for run in PARTS[name](Path(folder)):
                figures.append(measured(run, options.repeats))
    write_results("scorers", figures)


if __name__ == "__main__":
    main()
