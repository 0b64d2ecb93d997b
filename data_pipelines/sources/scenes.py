"""The built-in scenes as a source: drawn when they are read.

They have the captions, pictures and order of `train/` of `launch/draw_shapes.py` without settings.
"""

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.rejections import Rejection
from data_pipelines.shapes_data_set import pair_of, picture_name
from data_pipelines.sources.pictures import DeferredPicture
from data_pipelines.sources.rows import Part, RawPair
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.shapes.splits import TRAIN, ScenePair

LOCATION = "scenes"
"""Location that names them in the settings."""

_CONFIG = DrawShapesConfig(output_dir=LOCATION)


@dataclass(frozen=True, kw_only=True)
class ScenesSource:
    """The training scenes."""

    name: str
    """Name in the settings."""
    rows_per_part: int
    """Scenes of each part but the last."""

    def fingerprint(self) -> str:
        """Return what decides the scenes: their variety, seed and number."""
        return f"{LOCATION} {_CONFIG.variety} {_CONFIG.seed} {_CONFIG.train_scenes}"

    def parts(self) -> Iterator[Part]:
        """Yield the parts in order."""
        count = _CONFIG.train_scenes
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
        assert part.end is not None  # as parts() set it
        for row, number in enumerate(range(part.start, part.end)):
            pair = pair_of(_CONFIG, TRAIN, number)
            name = picture_name(number)
            yield RawPair(
                row=row,
                place=f"scene {number}",
                picture_id=name,
                picture=DeferredPicture(name=name, get=functools.partial(_drawn, pair)),
                caption=pair.caption,
                record={"image": name, "caption": pair.caption},
            )


def _drawn(pair: ScenePair) -> bytes:
    buffer = io.BytesIO()
    pair.draw().save(buffer, "PNG")
    return buffer.getvalue()
