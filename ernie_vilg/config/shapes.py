"""Settings of the built-in data set."""

from dataclasses import dataclass

from ernie_vilg.config.schema import LocalOutput, NaturalInt, NumWorkers, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class DrawShapesConfig(Settings):
    """Settings of launch/draw_shapes.py."""

    output_dir: LocalOutput
    """Folder for `train/` and `held_out/`, each a folder of raw pairs."""
    train_scenes: PositiveInt | None = None
    """Number of training scenes; null takes all that are not held out (22 thousand)."""
    held_out_scenes: PositiveInt = 200
    """Number of scenes from the held-out tenth (2.5 thousand), with one or two objects."""
    seed: NaturalInt = 0
    """Seed of the choice and order of scenes."""
    num_workers: NumWorkers = 1
    """Number of processes; 0 and 1 draw in the program's own."""
    overwrite: bool = False
    """Whether a data set already in `output_dir` is replaced."""
