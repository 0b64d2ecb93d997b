"""The built-in scenes as a source: drawn when they are read, in the order of draw_shapes.

They are the scenes that may be trained on, with the captions, pictures and order of `train/` of
`launch/draw_shapes.py` without settings.
"""

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.rejections import Rejection
from data_pipelines.shapes_data_set import TRAIN, choose_scenes
from data_pipelines.sources.pictures import DeferredPicture
from data_pipelines.sources.rows import Part, RawPair
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.shapes.scenes import Scene, caption_of, draw_scene

LOCATION = "scenes"
"""Location that names them in the settings."""


@dataclass(frozen=True, kw_only=True)
class ScenesSource:
    """Every scene that may be trained on."""

    name: str
    """Name in the settings."""
    rows_per_part: int
    """Scenes of each part but the last."""

    def fingerprint(self) -> str:
        """Return the number of scenes."""
        return f"{LOCATION} {len(_scenes())}"

    def parts(self) -> Iterator[Part]:
        """Yield the parts in order."""
        count = len(_scenes())
        for start in range(0, count, self.rows_per_part):
            end = min(start + self.rows_per_part, count)
            yield Part(
                source=self.name,
                file=LOCATION,
                start=start,
                end=end,
                first_row=start,
                rows=end - start,
            )

    def of_part(self, part: Part) -> "ScenesSource":
        """Return the source itself."""
        return self

    def rows(self, part: Part) -> Iterator[RawPair | Rejection]:
        """Yield the scenes of a part."""
        for row, scene in enumerate(_scenes()[part.start : part.end]):
            number = part.start + row
            name = f"{number:05d}.png"
            caption = caption_of(scene)
            yield RawPair(
                row=row,
                place=f"scene {number}",
                picture_id=name,
                picture=DeferredPicture(name=name, get=functools.partial(_drawn, scene)),
                caption=caption,
                record={"image": name, "caption": caption},
            )


@functools.cache
def _scenes() -> list[Scene]:
    return choose_scenes(DrawShapesConfig(output_dir=LOCATION))[TRAIN]


def _drawn(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    draw_scene(scene).save(buffer, "PNG")
    return buffer.getvalue()
