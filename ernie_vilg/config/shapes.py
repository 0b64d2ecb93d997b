"""Settings of the built-in data set.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_output


@dataclass(frozen=True, kw_only=True)
class DrawShapesConfig:
    """What `launch/draw_shapes.py` draws, and where to."""

    output_dir: str
    """Folder to write: `train/` and `held_out/`, each a folder of raw pairs."""
    train_scenes: int | None = None
    """Scenes of the training split; null takes all that are not held out (22 thousand)."""
    held_out_scenes: int = 200
    """Scenes drawn from the held-out tenth (2.5 thousand), of one and of two objects alike."""
    seed: int = 0
    """Names the choice and the order of scenes."""
    num_workers: int = 1
    """Processes that draw; 0 or 1 draws in the program's own."""
    overwrite: bool = False
    """Whether a data set already in `output_dir` is replaced."""

    def __post_init__(self) -> None:
        check_local_output(output_dir=self.output_dir)
        if self.train_scenes is not None and self.train_scenes < 1:
            raise InputError(
                f"train_scenes={self.train_scenes}: set at least 1, or null for all scenes"
            )
        if self.held_out_scenes < 1:
            raise InputError(f"held_out_scenes={self.held_out_scenes}: set at least 1")
        if self.seed < 0:
            raise InputError(f"seed={self.seed}: set 0 or more")
        if self.num_workers < 0:
            raise InputError(f"num_workers={self.num_workers}: set 0 or more")
