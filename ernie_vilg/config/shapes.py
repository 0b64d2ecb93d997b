"""Settings of the built-in data set."""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import LocalOutput, NaturalInt, NumWorkers, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class DrawShapesConfig(Settings):
    """Settings of launch/draw_shapes.py."""

    output_dir: LocalOutput
    """Folder for `train/`, `held_out/` and `unseen_pairs/`, each a folder of raw pairs."""
    variety: Literal["moderate", "exact", "varied"] = "moderate"
    """How much pictures and captions vary, as ernie_vilg/shapes/variety.py
    defines them."""
    train_scenes: PositiveInt = 22_000
    """Number of training scenes; a third each has one, two and three objects."""
    held_out_scenes: PositiveInt = 300
    """Number of scenes that are never trained on, but whose pairs of shape and colour are."""
    unseen_pair_scenes: PositiveInt = 300
    """Number of scenes with a pair of shape and colour that is never trained on."""
    seed: NaturalInt = 0
    """Seed of the scenes, looks and captions."""
    num_workers: NumWorkers = 1
    """Number of processes; 0 and 1 draw in the program's own."""
    overwrite: bool = False
    """Whether a data set already in `output_dir` is replaced."""
