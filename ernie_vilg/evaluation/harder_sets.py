"""Sets that a model cannot pass by heart: disturbed pictures, and pairs that training never had.

`disturbed_sets` captions the held-out scenes again, each time disturbed in one way: drawn by the
second renderer, shifted, or through JPEG. `unseen_pairs` draws and captions scenes that hold a pair
of shape and colour that no training scene had. In the folder of an evaluation they leave

    captions_of_sets.jsonl       per disturbed picture, its set, both captions, the judge's verdict
    disturbed/SET/00000.png      the disturbed pictures
    unseen_pairs/originals/00000.png   the pictures with unseen pairs
    unseen_pairs/drawn/00000.png       the pictures drawn for their captions
    unseen_pairs.png             the first of them as a grid, originals above
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ernie_vilg.evaluation.grid import before_and_after
from ernie_vilg.evaluation.pairs import GRID_COLUMNS, GRID_PICTURES, Model, Pair, draw
from ernie_vilg.shapes.captions import required_scenes
from ernie_vilg.shapes.evaluation_sets import DISTURBANCES, scene_pairs
from ernie_vilg.shapes.scores import caption_correct, score_captions, score_pictures
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.jsonl import line_of

DISTURBED, UNSEEN_PAIRS = "disturbed", "unseen_pairs"
CAPTIONS_OF_SETS_FILE = "captions_of_sets.jsonl"

logger = logging.getLogger(__name__)


def disturbed_sets(
    model: Model, pairs: Sequence[Pair], folder: Path, *, batch_size: int
) -> dict[str, Any]:
    """Caption the pairs' scenes, disturbed in every way, and write the pictures and captions.

    Args:
        model: writes the captions.
        pairs: pairs that `launch/draw_shapes.py` drew, with their looks.
        folder: folder of the evaluation.
        batch_size: pictures at once.

    Returns:
        the figures of the captions, by the name of the disturbance.

    Raises:
        InputError: a caption names no scene, or a line of the data set has no look.
    """
    drawable = scene_pairs(
        [{**pair.record, "image": pair.file, "caption": pair.caption} for pair in pairs]
    )
    scores, records = {}, []
    for name, disturb in DISTURBANCES.items():
        pictures = [disturb(pair) for pair in drawable]
        files = _save(folder, f"{DISTURBED}/{name}", pictures)
        written = model.caption(pictures, batch_size=batch_size, temperature=0.0)
        captions = [text.caption for text in written]
        scores[name] = asdict(score_captions([pair.scene for pair in drawable], captions))
        records += [
            {
                "set": name,
                "picture": file,
                "caption": pair.caption,
                "written": caption,
                "caption_correct": caption_correct(pair.scene, caption),
            }
            for file, pair, caption in zip(files, drawable, captions, strict=True)
        ]
    write_bytes(folder / CAPTIONS_OF_SETS_FILE, b"".join(map(line_of, records)))
    return scores


def unseen_pairs(
    model: Model,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    batch_size: int,
    temperature: float,
    drawings: int = 1,
) -> dict[str, Any]:
    """Draw and caption scenes with unseen pairs of shape and colour, and write the pictures.

    Args:
        model: draws and writes.
        pairs: pairs of the built-in data.
        folder: folder of the evaluation.
        batch_size: pictures at once.
        temperature: temperature of the drawn pictures; 0 is greedy.
        drawings: pictures drawn per caption, of which the model keeps one.

    Returns:
        the figures of the drawn pictures and of the captions.

    Raises:
        InputError: a caption names no scene of the built-in data.
    """
    captions, originals = [pair.caption for pair in pairs], [pair.image for pair in pairs]
    scenes = required_scenes(captions)
    generated = draw(
        model, captions, drawings=drawings, temperature=temperature, batch_size=batch_size
    )
    drawn = [item.image for item in generated]
    written = model.caption(originals, batch_size=batch_size, temperature=0.0)
    _save(folder, f"{UNSEEN_PAIRS}/originals", originals)
    _save(folder, f"{UNSEEN_PAIRS}/drawn", drawn)
    grid = before_and_after(originals[:GRID_PICTURES], drawn[:GRID_PICTURES], columns=GRID_COLUMNS)
    grid.save(folder / f"{UNSEEN_PAIRS}.png")
    return {
        "text_to_image": asdict(score_pictures(scenes, drawn)),
        "image_to_text": asdict(score_captions(scenes, [text.caption for text in written])),
    }


def table_of(scores: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of an evaluation that the judge of the built-in data made.

    Args:
        scores: content of `evaluation.json`.

    Returns:
        the heading and a row per set: its name, the figure over all scenes, and those of the scenes
        of one, two and three objects alone. Empty if nothing was judged.
    """
    if "by_num_objects" not in scores["text_to_image"]:
        return []
    unseen = scores.get(UNSEEN_PAIRS)
    drawn = [("objects drawn right", scores["text_to_image"])]
    written = [("captions right", scores["image_to_text"])]
    if unseen is not None:
        drawn.append(("objects drawn right, unseen pairs", unseen["text_to_image"]))
        written.append(("captions right, unseen pairs", unseen["image_to_text"]))
    written[1:1] = [
        (f"captions right, {name.replace('_', ' ')}", figures)
        for name, figures in scores.get(DISTURBED, {}).items()
    ]
    limit = scores["image_tokenizer"]
    by_number = limit["objects_correct_by_num_objects"]
    return [
        [
            "set",
            "all",
            *("1 object" if number == "1" else f"{number} objects" for number in by_number),
        ],
        _row("objects right after the image tokenizer alone", limit["objects_correct"], by_number),
        *(
            _row(
                name,
                figures["objects_correct"],
                {key: part["objects_correct"] for key, part in figures["by_num_objects"].items()},
            )
            for name, figures in drawn
        ),
        *(
            _row(name, figures["captions_correct"], figures["by_num_objects"])
            for name, figures in written
        ),
    ]


def log_table(table: Sequence[Sequence[str]]) -> None:
    """Write a table to the log, a line per row, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *figures in table:
        cells = (cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))
        logger.info("%s  %s", name.ljust(widths[0]), "  ".join(cells))


def _row(name: str, figure: float, by_number: Mapping[str, float]) -> list[str]:
    return [name, *(f"{100 * share:.1f} %" for share in (figure, *by_number.values()))]


def _save(folder: Path, name: str, pictures: Sequence[Image.Image]) -> list[str]:
    """Save pictures; return their files, relative to the folder."""
    (folder / name).mkdir(parents=True)
    files = [f"{name}/{index:05d}.png" for index in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(folder / file)
    return files
