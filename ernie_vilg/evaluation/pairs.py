"""A model against pairs it has not seen: it draws their captions and captions their pictures.

What lies in the folder afterwards:

    evaluation.json         every figure
    originals/00000.png     the pictures as the model sees them: cropped and resized
    drawn/00000.png         what it drew for their captions
    reconstructed/00000.png the originals after the image tokenizer alone
    pairs.jsonl             per pair: its files, both captions, both log-probabilities, and
                            what the judge says
    drawn.png, reconstructed.png   the first pictures as grids, originals above

Source: ours.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from data_pipelines.images import crop_and_resize, load_image
from data_pipelines.sources import RejectedError, Rejection
from data_pipelines.sources import read_pairs as read_raw_pairs
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.grid import before_and_after
from ernie_vilg.evaluation.reconstruction import ImageCoder, psnr_of_pictures, reconstruct
from ernie_vilg.shapes.judge import (
    caption_correct,
    objects_correct,
    required_scenes,
    score_pictures,
)
from ernie_vilg.shapes.scenes import Scene
from ernie_vilg.storage.files import write_bytes, write_json
from ernie_vilg.storage.jsonl import line_of

EVALUATION_FILE = "evaluation.json"
PAIRS_FILE = "pairs.jsonl"
ORIGINALS, DRAWN, RECONSTRUCTED = "originals", "drawn", "reconstructed"

_MAX_CAPTION_CHARACTERS = 1000
_MAX_PIXELS = 64_000_000
_GRID_PICTURES = 60
_GRID_COLUMNS = 15


class Generated(Protocol):
    """One drawn picture."""

    @property
    def image(self) -> Image.Image:
        """The picture."""

    @property
    def log_probability(self) -> float:
        """Sum over its codes, natural logarithm."""


class Captioned(Protocol):
    """One written caption."""

    @property
    def caption(self) -> str:
        """The text."""

    @property
    def log_probability(self) -> float:
        """Sum over its ids, natural logarithm."""


class Model(ImageCoder, Protocol):
    """What is evaluated; `ernie_vilg.generation.pipeline.ErnieVilg` is one."""

    def generate(
        self, prompts: Sequence[str], *, images_per_prompt: int, temperature: float, batch_size: int
    ) -> Sequence[Generated]:
        """Draw each prompt; a temperature of 0 is greedy."""

    def caption(
        self, images: Sequence[Image.Image], *, batch_size: int, temperature: float
    ) -> Sequence[Captioned]:
        """Write a caption for each picture."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An unseen picture and its caption."""

    image: Image.Image
    """RGB, of the tokenizer's size."""
    caption: str
    """As the data set words it."""
    file: str
    """The picture's path in its data set."""


def read_pairs(folder: Path, *, count: int, image_size: int) -> list[Pair]:
    """Read the first pairs of a raw data set.

    Args:
        folder: `captions.jsonl` and images.
        count: number of pairs.
        image_size: pixels per side of the returned pictures.

    Raises:
        InputError: a pair cannot be used, or there are too few.
    """
    pairs: list[Pair] = []
    for raw in read_raw_pairs(folder, max_caption_characters=_MAX_CAPTION_CHARACTERS):
        if len(pairs) == count:
            break
        if isinstance(raw, Rejection):
            raise InputError(
                f"pairs={folder}, line {raw.line}: {raw.reason} ({raw.detail}); mend or remove it"
            )
        try:
            image = load_image(raw.image, max_pixels=_MAX_PIXELS)
        except RejectedError as error:
            raise InputError(f"pairs={folder}: {error.reason} {error.detail}; mend it") from error
        pairs.append(
            Pair(
                image=crop_and_resize(image, image_size),
                caption=raw.caption,
                file=str(raw.record["image"]),
            )
        )
    if len(pairs) < count:
        raise InputError(f"count={count}: {folder} holds {len(pairs)} pairs; ask for fewer")
    return pairs


def evaluate(
    model: Model,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    codebook_size: int,
    judge: str,
    batch_size: int,
    temperature: float = 0.0,
) -> dict[str, Any]:
    """Draw, caption and reconstruct the pairs, judge the results and write all of it.

    Args:
        model: draws, captions, encodes and decodes.
        pairs: what to evaluate on.
        folder: an empty folder to write to.
        codebook_size: number of codes of its image tokenizer.
        judge: "shapes" or "none".
        batch_size: pictures at once.
        temperature: of the drawn pictures; 0 is greedy.

    Returns:
        the content of `evaluation.json`.

    Raises:
        InputError: `judge` is "shapes" and a caption names no scene of the built-in data.
    """
    captions = [pair.caption for pair in pairs]
    originals = [pair.image for pair in pairs]
    scenes = required_scenes(captions) if judge == "shapes" else None
    drawn = model.generate(
        captions, images_per_prompt=1, temperature=temperature, batch_size=batch_size
    )
    written = model.caption(originals, batch_size=batch_size, temperature=0.0)
    rebuilt = reconstruct(model, originals, batch_size=batch_size)

    exact = [
        _as_written(item.caption) == _as_written(caption)
        for item, caption in zip(written, captions, strict=True)
    ]
    scores: dict[str, Any] = {
        "pairs": len(pairs),
        "judge": judge,
        "text_to_image": {},
        "image_to_text": {"exact_matches": sum(exact) / len(exact)},
        "image_tokenizer": {
            "psnr": psnr_of_pictures(originals, rebuilt.images),
            "codebook_usage": rebuilt.num_codes / codebook_size,
        },
    }
    records = [_record(*parts) for parts in enumerate(zip(pairs, drawn, written, strict=True))]
    if scenes is not None:
        _judge_shapes(scores, records, scenes, drawn, written)
        ceiling = score_pictures(scenes, rebuilt.images).objects_correct
        scores["image_tokenizer"]["objects_correct"] = ceiling
    pictures = {
        ORIGINALS: originals,
        DRAWN: [item.image for item in drawn],
        RECONSTRUCTED: rebuilt.images,
    }
    _write_pictures(folder, pictures)
    write_bytes(folder / PAIRS_FILE, b"".join(map(line_of, records)))
    write_json(folder / EVALUATION_FILE, scores)
    return scores


def _as_written(caption: str) -> str:
    """Return a caption in the form that ids have: text tokenizers know full-width forms as others.

    Without it no model could write a caption of full-width letters exactly.
    """
    return " ".join(unicodedata.normalize("NFKC", caption).split())


def _record(index: int, parts: tuple[Pair, Generated, Captioned]) -> dict[str, Any]:
    pair, picture, text = parts
    return {
        "image": pair.file,
        "caption": pair.caption,
        "original": f"{ORIGINALS}/{index:05d}.png",
        "drawn": f"{DRAWN}/{index:05d}.png",
        "drawn_log_probability": picture.log_probability,
        "reconstructed": f"{RECONSTRUCTED}/{index:05d}.png",
        "written": text.caption,
        "written_log_probability": text.log_probability,
    }


def _judge_shapes(
    scores: dict[str, Any],
    records: Sequence[dict[str, Any]],
    scenes: Sequence[Scene],
    drawn: Sequence[Generated],
    written: Sequence[Captioned],
) -> None:
    """Add what the pixels say to the scores and to each pair's record."""
    judged = zip(records, scenes, drawn, written, strict=True)
    for record, scene, picture, text in judged:
        record["objects"] = len(scene.objects)
        record["objects_correct"] = objects_correct(scene, picture.image)
        record["caption_correct"] = caption_correct(scene, text.caption)
    scores["text_to_image"] = asdict(score_pictures(scenes, [item.image for item in drawn]))
    right = sum(record["caption_correct"] for record in records)
    scores["image_to_text"]["captions_correct"] = right / len(records)


def _write_pictures(folder: Path, pictures: dict[str, Sequence[Image.Image]]) -> None:
    for name, images in pictures.items():
        (folder / name).mkdir()
        for index, image in enumerate(images):
            image.save(folder / name / f"{index:05d}.png")
    before = pictures[ORIGINALS][:_GRID_PICTURES]
    for name in (DRAWN, RECONSTRUCTED):
        after = pictures[name][:_GRID_PICTURES]
        before_and_after(before, after, columns=_GRID_COLUMNS).save(folder / f"{name}.png")
