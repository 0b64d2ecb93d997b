"""The built-in scenes as raw pairs: a folder of PNG files and `captions.jsonl`."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.outputs import output_folder
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.errors import InputError
from ernie_vilg.shapes.scenes import Scene, all_scenes, caption_of, draw_scene, is_held_out
from ernie_vilg.system.progress import progress
from ernie_vilg.system.worker_pool import map_in_order

CAPTIONS_FILE = "captions.jsonl"
TRAIN = "train"
HELD_OUT = "held_out"

_SCENES_PER_TASK = 512


@dataclass(frozen=True, kw_only=True)
class _DrawingTask:
    """Some scenes of one split."""

    images: Path
    """Folder of PNG files."""
    first: int
    """Position of the first scene in its split, which gives its file name."""
    scenes: tuple[Scene, ...]


def write_shapes(config: DrawShapesConfig) -> dict[str, int]:
    """Draw both splits.

    Returns:
        the number of scenes by split.

    Raises:
        InputError: `output_dir` must not be written, or more scenes are asked for than exist.
    """
    splits = choose_scenes(config)
    marker = f"{TRAIN}/{CAPTIONS_FILE}"
    with output_folder(config.output_dir, overwrite=config.overwrite, marker=marker) as root:
        for name, scenes in splits.items():
            _write_captions(root / name, scenes)
        tasks = [
            task for name, scenes in splits.items() for task in _drawing_tasks(root / name, scenes)
        ]
        drawn = map_in_order(_draw, tasks, num_workers=config.num_workers)
        for _ in progress(drawn, total=len(tasks), what="draw shapes", unit="batches"):
            pass
    return {name: len(scenes) for name, scenes in splits.items()}


def choose_scenes(config: DrawShapesConfig) -> dict[str, list[Scene]]:
    """Return the scenes of each split in the order of the seed.

    Raises:
        InputError: a split has fewer scenes than asked for.
    """
    wanted = {TRAIN: config.train_scenes, HELD_OUT: config.held_out_scenes}
    available: dict[str, list[Scene]] = {TRAIN: [], HELD_OUT: []}
    for scene in all_scenes():
        available[HELD_OUT if is_held_out(scene) else TRAIN].append(scene)
    chosen = {}
    for name, scenes in available.items():
        limit = wanted[name]
        count = len(scenes) if limit is None else limit
        if count > len(scenes):
            raise InputError(
                f"{name}_scenes={count}: there are {len(scenes)} such scenes; ask for fewer"
            )
        # One generator per split, so that the size of one does not change the other.
        chosen[name] = random.Random(f"{config.seed} {name}").sample(scenes, count)
    return chosen


def _write_captions(folder: Path, scenes: Sequence[Scene]) -> None:
    (folder / "images").mkdir(parents=True)
    with (folder / CAPTIONS_FILE).open("w", encoding="utf-8") as file:
        for position, scene in enumerate(scenes):
            pair = {"image": f"images/{_file_name(position)}", "caption": caption_of(scene)}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")


def _drawing_tasks(folder: Path, scenes: Sequence[Scene]) -> list[_DrawingTask]:
    return [
        _DrawingTask(
            images=folder / "images",
            first=first,
            scenes=tuple(scenes[first : first + _SCENES_PER_TASK]),
        )
        for first in range(0, len(scenes), _SCENES_PER_TASK)
    ]


def _draw(task: _DrawingTask) -> None:
    for offset, scene in enumerate(task.scenes):
        draw_scene(scene).save(task.images / _file_name(task.first + offset))


def _file_name(position: int) -> str:
    return f"{position:05d}.png"
