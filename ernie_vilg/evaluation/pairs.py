"""Evaluation on unseen pairs: a model draws their captions and captions their pictures.

The folder of an evaluation holds:

    evaluation.json         every figure
    originals/00000.png     the pictures as the model sees them: cropped and resized
    drawn/00000.png         the pictures drawn for their captions
    reconstructed/00000.png the originals after the image tokenizer alone
    pairs.jsonl             per pair: its files, both captions, both log-probabilities, the
                            judge's counts, its ranks in retrieval and the likeliest candidates
    drawn.png, reconstructed.png   the first pictures as grids, originals above
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_pipelines.captions import clean_caption
from data_pipelines.images import crop_and_resize, decode_image
from data_pipelines.rejections import RejectedError, Rejection, count_reasons
from data_pipelines.sources.captions_file import IMAGE, read_captions_file
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.grid import before_and_after
from ernie_vilg.evaluation.reconstruction import (
    ImageCoder,
    Reconstruction,
    reconstruct,
)
from ernie_vilg.evaluation.retrieval import Retrieval, Scorer, retrieve
from ernie_vilg.shapes.captions import required_scenes
from ernie_vilg.shapes.scenes import Scene
from ernie_vilg.shapes.scores import (
    caption_correct,
    objects_correct,
    score_captions,
    score_pictures,
)
from ernie_vilg.storage.files import write_bytes, write_json
from ernie_vilg.storage.jsonl import line_of
from ernie_vilg.text_tokenizer.sentence_piece import in_nfkc
from ernie_vilg.vqgan.losses.pixel import psnr_of_pictures

EVALUATION_FILE = "evaluation.json"
PAIRS_FILE = "pairs.jsonl"
ORIGINALS, DRAWN, RECONSTRUCTED = "originals", "drawn", "reconstructed"
GRID_PICTURES, GRID_COLUMNS = 60, 15

_MAX_CAPTION_CHARACTERS = 1000
_MAX_PIXELS = 64_000_000

logger = logging.getLogger(__name__)


class Generated(Protocol):
    """One drawn picture."""

    @property
    def image(self) -> Image.Image:
        """The picture."""

    @property
    def log_probability(self) -> float:
        """Log-probability of its codes in nats."""


class Captioned(Protocol):
    """One written caption."""

    @property
    def caption(self) -> str:
        """The text."""

    @property
    def log_probability(self) -> float:
        """Log-probability of its ids in nats."""


class Model(ImageCoder, Scorer, Protocol):
    """A model to evaluate, such as `ernie_vilg.generation.pipeline.ErnieVilg`."""

    def generate(
        self, prompts: Sequence[str], *, images_per_prompt: int, temperature: float, batch_size: int
    ) -> Sequence[Generated]:
        """Draw each prompt; a temperature of 0 is greedy."""

    def generate_chosen(
        self, prompts: Sequence[str], *, drawings: int, temperature: float, batch_size: int
    ) -> Sequence[Generated]:
        """Draw each prompt several times; return the picture that the model finds best."""

    def caption(
        self, images: Sequence[Image.Image], *, batch_size: int, temperature: float
    ) -> Sequence[Captioned]:
        """Write a caption for each picture."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An unseen picture and its caption."""

    image: Image.Image
    """RGB picture of the image tokenizer's size."""
    caption: str
    """Caption in the words of the data set."""
    file: str
    """Path of the picture in its data set."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Line of `captions.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """Everything that a model made of some pairs, in their order."""

    drawn: Sequence[Generated]
    """Pictures drawn for the captions."""
    written: Sequence[Captioned]
    """Captions written for the pictures."""
    rebuilt: Reconstruction
    """The pictures after the image tokenizer alone."""


def read_pairs(folder: Path, *, count: int, image_size: int) -> list[Pair]:
    """Read the first usable pairs of a raw data set; log how many unusable ones are skipped.

    Args:
        folder: `captions.jsonl` and images.
        count: number of pairs.
        image_size: pixels per side of the returned pictures.

    Raises:
        InputError: there are too few usable pairs.
    """
    pairs: list[Pair] = []
    skipped: list[Rejection] = []
    for pair in _usable_pairs(folder, image_size, skipped):
        pairs.append(pair)
        if len(pairs) == count:
            break
    told = _told(skipped) if skipped else ""
    if len(pairs) < count:
        also = f" ({told})" if told else ""
        raise InputError(f"count={count}: {folder} holds {len(pairs)} pairs{also}; ask for fewer")
    if told:
        logger.warning("pairs=%s: %s", folder, told)
    return pairs


def mean_picture(folder: Path, *, image_size: int) -> Image.Image:
    """Return the mean of all usable pictures of a raw data set, RGB.

    It is the constant picture with the highest PSNR to them: the best drawing of a model that
    ignores its caption. A picture counts once per caption.

    Args:
        folder: `captions.jsonl` and images.
        image_size: pixels per side.

    Raises:
        InputError: there is no usable pair.
    """
    total = np.zeros((image_size, image_size, 3))
    count, skipped = 0, list[Rejection]()
    for pair in _usable_pairs(folder, image_size, skipped):
        total += np.asarray(pair.image)
        count += 1
    told = _told(skipped) if skipped else ""
    if not count:
        raise InputError(f"training_pairs={folder} holds no usable pair ({told or 'no rows'})")
    if told:
        logger.warning("training_pairs=%s: %s", folder, told)
    return Image.fromarray((total / count).round().astype(np.uint8))


def _usable_pairs(folder: Path, image_size: int, skipped: list[Rejection]) -> Iterator[Pair]:
    """Yield the pairs of a raw data set, and append its other rows to `skipped`."""
    for raw in read_captions_file(folder):
        if isinstance(raw, Rejection):
            skipped.append(raw)
            continue
        try:
            caption = clean_caption(raw.caption, max_characters=_MAX_CAPTION_CHARACTERS)
            content = raw.picture.read()
            picture = decode_image(content, raw.picture.name, max_pixels=_MAX_PIXELS)
            image = crop_and_resize(picture, image_size)
        except RejectedError as error:
            skipped.append(
                Rejection(row=raw.row, place=raw.place, reason=error.reason, detail=error.detail)
            )
            continue
        file = str(raw.record[IMAGE])
        yield Pair(image=image, caption=caption, file=file, record=raw.record)


def _told(skipped: list[Rejection]) -> str:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(skipped).items())
    first = skipped[0]
    return (
        f"unusable pairs skipped: {len(skipped)} ({reasons}), the first is {first.place}: "
        f"{first.reason} {first.detail}"
    )


def evaluate(
    model: Model,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    codebook_size: int,
    judge: str,
    batch_size: int,
    temperature: float = 0.0,
    drawings: int = 1,
    candidates: int = 0,
    baseline: Image.Image | None = None,
    comparable: Callable[[str], str] = in_nfkc,
) -> dict[str, Any]:
    """Draw, caption and reconstruct the pairs, judge the results and write all of it.

    Args:
        model: draws, captions, encodes and decodes.
        pairs: the pairs to evaluate on.
        folder: an empty folder to write to.
        codebook_size: number of codes of the image tokenizer.
        judge: "shapes" or "none".
        batch_size: pictures at once.
        temperature: temperature of the drawn pictures; 0 is greedy.
        drawings: pictures drawn per caption, of which the model keeps one (see `draw`).
        candidates: number of pairs that are ranked against each other (see `retrieval`); 0 ranks
            none.
        baseline: picture that drawn ones are compared with, of the pairs' size; None for none.
        comparable: returns what of a caption the text tokenizer keeps; captions are exact if they
            have it in common.

    Returns:
        the content of `evaluation.json`.

    Raises:
        InputError: `judge` is "shapes" and a caption names no scene of the built-in data, or there
            are fewer different captions than candidates.
    """
    captions = [pair.caption for pair in pairs]
    originals = [pair.image for pair in pairs]
    scenes = required_scenes(captions) if judge == "shapes" else None
    outputs = _Outputs(
        drawn=draw(
            model, captions, drawings=drawings, temperature=temperature, batch_size=batch_size
        ),
        written=model.caption(originals, batch_size=batch_size, temperature=0.0),
        rebuilt=reconstruct(model, originals, batch_size=batch_size),
    )
    scores = _scores(pairs, outputs, comparable, codebook_size=codebook_size, judge=judge)
    scores |= {"drawings": drawings, "temperature": temperature}
    records = _records(pairs, outputs)
    if baseline is not None:
        alike = [baseline] * len(pairs)
        scores["text_to_image"]["psnr_of_mean_picture"] = psnr_of_pictures(originals, alike)
    if scenes is not None:
        _judge_shapes(scores, records, scenes, outputs)
    if candidates:
        found = retrieve(model, pairs, candidates=candidates, batch_size=batch_size)
        scores["retrieval"] = found.figures()
        _add_ranks(records, found)
    _write_pictures(folder, originals, outputs)
    write_bytes(folder / PAIRS_FILE, b"".join(map(line_of, records)))
    write_json(folder / EVALUATION_FILE, scores)
    return scores


def draw(
    model: Model, captions: Sequence[str], *, drawings: int, temperature: float, batch_size: int
) -> Sequence[Generated]:
    """Draw each caption once, or several times and keep the picture that the model finds best."""
    if drawings == 1:
        return model.generate(
            captions, images_per_prompt=1, temperature=temperature, batch_size=batch_size
        )
    return model.generate_chosen(
        captions, drawings=drawings, temperature=temperature, batch_size=batch_size
    )


def _scores(
    pairs: Sequence[Pair],
    outputs: _Outputs,
    comparable: Callable[[str], str],
    *,
    codebook_size: int,
    judge: str,
) -> dict[str, Any]:
    """Return the figures that need no judge."""
    exact = [
        comparable(item.caption) == comparable(pair.caption)
        for item, pair in zip(outputs.written, pairs, strict=True)
    ]
    return {
        "pairs": len(pairs),
        "judge": judge,
        "text_to_image": {
            "psnr": psnr_of_pictures(
                [pair.image for pair in pairs], [item.image for item in outputs.drawn]
            )
        },
        "image_to_text": {"exact_matches": sum(exact) / len(exact)},
        "image_tokenizer": {
            "psnr": psnr_of_pictures([pair.image for pair in pairs], outputs.rebuilt.images),
            "codebook_usage": outputs.rebuilt.num_codes / codebook_size,
        },
    }


def _records(pairs: Sequence[Pair], outputs: _Outputs) -> list[dict[str, Any]]:
    parts = zip(pairs, outputs.drawn, outputs.written, strict=True)
    return [_record(*indexed) for indexed in enumerate(parts)]


def _add_ranks(records: Sequence[dict[str, Any]], found: Retrieval) -> None:
    for index, ranks in found.records().items():
        records[index].update(ranks)


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
    outputs: _Outputs,
) -> None:
    """Add the figures read from pixels to the scores and to each pair's record."""
    judged = zip(records, scenes, outputs.drawn, outputs.written, strict=True)
    for record, scene, picture, text in judged:
        record["objects"] = len(scene.objects)
        record["objects_correct"] = objects_correct(scene, picture.image)
        record["caption_correct"] = caption_correct(scene, text.caption)
    drawn = score_pictures(scenes, [item.image for item in outputs.drawn])
    scores["text_to_image"] |= asdict(drawn)
    written = score_captions(scenes, [text.caption for text in outputs.written])
    scores["image_to_text"] |= asdict(written)
    ceiling = score_pictures(scenes, outputs.rebuilt.images)
    scores["image_tokenizer"]["objects_correct"] = ceiling.objects_correct
    scores["image_tokenizer"]["objects_correct_by_num_objects"] = {
        number: figures.objects_correct for number, figures in ceiling.by_num_objects.items()
    }


def _write_pictures(folder: Path, originals: Sequence[Image.Image], outputs: _Outputs) -> None:
    pictures = {
        ORIGINALS: originals,
        DRAWN: [item.image for item in outputs.drawn],
        RECONSTRUCTED: outputs.rebuilt.images,
    }
    for name, images in pictures.items():
        (folder / name).mkdir()
        for index, image in enumerate(images):
            image.save(folder / name / f"{index:05d}.png")
    for name in (DRAWN, RECONSTRUCTED):
        before, after = originals[:GRID_PICTURES], pictures[name][:GRID_PICTURES]
        before_and_after(before, after, columns=GRID_COLUMNS).save(folder / f"{name}.png")
