"""The pictures of each row for the same captions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.reconstructor_parts.control import train_decoder_longer
from benchmarks.reconstructor_parts.figures import figures_of
from benchmarks.reconstructor_parts.rows import (
    LONGER,
    ROWS,
    Figures,
    Pictures,
    Settings,
    generators_of,
)
from ernie_vilg.evaluation.grid import picture_grid
from ernie_vilg.evaluation.pairs import Pair
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.model.weights import load_weights
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.vocabulary import text_slots
from ernie_vilg.vqgan.pixels import to_pictures

FIGURES_FILE, PICTURES_FILE = "figures.json", "pictures.png"
SHOWN_CAPTIONS = 6
BATCH_SIZE = 100


def measured(
    folder: Path, seed: int, settings: Settings, pairs: Sequence[Pair]
) -> dict[str, Figures]:
    """Return the figures of each row for one seed; its folder keeps them once they are known."""
    path = folder / f"seed_{seed}" / FIGURES_FILE
    if not path.exists():
        pictures = draw_rows(folder, seed, settings, pairs)
        if seed == 0:
            _write_grid(folder / PICTURES_FILE, pairs, pictures)
        write_json(path, {name: figures_of(drawn, pairs) for name, drawn in pictures.items()})
    figures: dict[str, Figures] = read_json(path)
    return figures


def draw_rows(
    folder: Path, seed: int, settings: Settings, pairs: Sequence[Pair]
) -> dict[str, Pictures]:
    """Return each row's pictures for the same captions, by the row's name."""
    home = folder / f"seed_{seed}"
    captions = [pair.caption for pair in pairs]
    originals = [pair.image for pair in pairs]
    drawn: dict[str, Pictures] = {}
    for generator in generators_of(seed, settings):
        weights = home / generator / "weights"
        model = ErnieVilg.from_pretrained(weights)
        gold = torch.cat([model.encode_images(part) for part in _parts(originals)])
        results = model.generate(captions, batch_size=BATCH_SIZE)
        codes = torch.stack([result.codes for result in results])
        drawn[f"{generator} / two_stage"] = _in_batches(model.decode_images, codes)
        if generator == "two_stage":
            drawn["gold / two_stage"] = _in_batches(model.decode_images, gold)
            model.image_tokenizer = train_decoder_longer(home, seed, settings)
            drawn[f"two_stage / {LONGER}"] = _in_batches(model.decode_images, codes)
            drawn[f"gold / {LONGER}"] = _in_batches(model.decode_images, gold)
        else:
            drawn[f"{generator} / {generator}"] = [result.image for result in results]
            drawn[f"gold / {generator}"] = teacher_forced(weights, model, captions, gold)
    return {row.name: drawn[row.name] for row in ROWS if row.name in drawn}


@torch.inference_mode()
def teacher_forced(
    weights: Path, pipeline: ErnieVilg, captions: Sequence[str], codes: Tensor
) -> Pictures:
    """Return the pictures that the reconstructor draws from hidden states under given codes.

    Args:
        weights: folder of an end-to-end model.
        pipeline: the same model, for its text tokenizer.
        captions: the texts.
        codes: codes of the pictures, int64 [batch, grid, grid].
    """
    _, model = load_weights(weights)
    slots = [
        text_slots(pipeline.text_tokenizer.encode(caption), pipeline.config.text_length)
        for caption in captions
    ]
    text = torch.tensor(slots)
    pictures: Pictures = []
    for start in range(0, len(text), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        pixels = model((text[part], codes[part].flatten(1))).pixels
        pictures += to_pictures(pixels)
    return pictures


def _write_grid(path: Path, pairs: Sequence[Pair], drawn: Mapping[str, Pictures]) -> None:
    """Write the first captions' pictures: the true one, then one column per row of the table."""
    rows = [row.name for row in ROWS if row.is_shown]
    columns = [[pair.image for pair in pairs], *(drawn[name] for name in rows)]
    size = (112, 112)
    shown = [
        column[index].resize(size, Image.Resampling.NEAREST)
        for index in range(SHOWN_CAPTIONS)
        for column in columns
    ]
    grid = picture_grid(shown, columns=len(columns))
    labelled = Image.new("RGB", (grid.width, grid.height + 28), "white")
    labelled.paste(grid, (0, 28))
    draw = ImageDraw.Draw(labelled)
    for index, name in enumerate(["true picture", *rows]):
        draw.text((6 + index * (size[0] + 4), 2), name.replace(" / ", " /\n"), fill="black")
    labelled.save(path, optimize=True)


def _parts(items: Sequence) -> list[Sequence]:  # type: ignore[type-arg]
    return [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]


def _in_batches(decode: Callable[[Tensor], Pictures], codes: Tensor) -> Pictures:
    return [picture for part in codes.split(BATCH_SIZE) for picture in decode(part)]
