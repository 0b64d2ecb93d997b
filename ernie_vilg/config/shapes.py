"""Settings of the built-in data set.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.schema import LocalOutput, NaturalInt, NumWorkers, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class DrawShapesConfig(Settings):
    """What `launch/draw_shapes.py` draws, and where to."""

    output_dir: LocalOutput
    """Folder to write: `train/` and `held_out/`, each a folder of raw pairs."""
    train_scenes: PositiveInt | None = None
    """Scenes of the training split; null takes all that are not held out (22 thousand)."""
    held_out_scenes: PositiveInt = 200
    """Scenes drawn from the held-out tenth (2.5 thousand), of one and of two objects alike."""
    seed: NaturalInt = 0
    """Names the choice and the order of scenes."""
    num_workers: NumWorkers = 1
    """Processes that draw; 0 or 1 draws in the program's own."""
    overwrite: bool = False
    """Whether a data set already in `output_dir` is replaced."""
