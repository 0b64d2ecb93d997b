"""The built-in scenes as raw pairs: folders of PNG files and `captions.jsonl`.

The lines of the splits for evaluation also hold the look of each picture under "look", so that
another renderer can draw the same scene.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.outputs import output_folder
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.shapes.evaluation_sets import LOOK
from ernie_vilg.shapes.looks import look_record
from ernie_vilg.shapes.splits import HELD_OUT, TRAIN, UNSEEN_PAIRS, ScenePair, scene_pair
from ernie_vilg.shapes.variety import VARIETIES
from ernie_vilg.system.progress import progress
from ernie_vilg.system.worker_pool import map_in_order

CAPTIONS_FILE = "captions.jsonl"

_SCENES_PER_TASK = 512


@dataclass(frozen=True, kw_only=True)
class _DrawingTask:
    """Some pairs of one split."""

    images: Path
    """Folder of PNG files."""
    split: str
    """Split of the pairs."""
    positions: range
    """Positions of the pairs in their split, which give the file names."""
    config: DrawShapesConfig
    """Settings of the data set."""


def write_shapes(config: DrawShapesConfig) -> dict[str, int]:
    """Draw all splits.

    Returns:
        the number of scenes by split.

    Raises:
        InputError: `output_dir` must not be written.
    """
    counts = scenes_by_split(config)
    marker = f"{TRAIN}/{CAPTIONS_FILE}"
    with output_folder(config.output_dir, overwrite=config.overwrite, marker=marker) as root:
        tasks = [
            task
            for split, count in counts.items()
            for task in _drawing_tasks(root / split / "images", split, count, config)
        ]
        for split in counts:
            (root / split / "images").mkdir(parents=True)
        drawn = map_in_order(_draw, tasks, num_workers=config.num_workers)
        batches = progress(drawn, total=len(tasks), what="draw shapes", unit="batches")
        for task, lines in zip(tasks, batches, strict=True):
            captions = root / task.split / CAPTIONS_FILE
            with captions.open("a", encoding="utf-8") as file:
                file.writelines(lines)
    return counts


def scenes_by_split(config: DrawShapesConfig) -> dict[str, int]:
    """Return the number of scenes of each split."""
    return {
        TRAIN: config.train_scenes,
        HELD_OUT: config.held_out_scenes,
        UNSEEN_PAIRS: config.unseen_pair_scenes,
    }


def pair_of(config: DrawShapesConfig, split: str, index: int) -> ScenePair:
    """Return one pair of a split."""
    return scene_pair(VARIETIES[config.variety], seed=config.seed, split=split, index=index)


def picture_name(index: int) -> str:
    """Return the name of the file of a picture."""
    return f"{index:05d}.png"


def _drawing_tasks(
    images: Path, split: str, count: int, config: DrawShapesConfig
) -> list[_DrawingTask]:
    return [
        _DrawingTask(
            images=images,
            split=split,
            positions=range(first, min(first + _SCENES_PER_TASK, count)),
            config=config,
        )
        for first in range(0, count, _SCENES_PER_TASK)
    ]


def _draw(task: _DrawingTask) -> Sequence[str]:
    """Draw the pictures; return their lines of `captions.jsonl`."""
    lines = []
    for position in task.positions:
        pair = pair_of(task.config, task.split, position)
        name = picture_name(position)
        pair.draw().save(task.images / name)
        record: dict[str, Any] = {"image": f"{task.images.name}/{name}", "caption": pair.caption}
        if task.split != TRAIN:
            record[LOOK] = look_record(pair.look)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return lines
