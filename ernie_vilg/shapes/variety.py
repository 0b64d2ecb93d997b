"""How much the pictures and captions of the built-in data vary: one dial for the whole data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ernie_vilg.shapes.scenes import Colour

WHITE: Colour = (255, 255, 255)

FORMS = (
    "{quadrant}有一个{colour}的{size}{shape}",
    "{colour}的{size}{shape}在{quadrant}",
    "{quadrant}是一个{size}的{colour}{shape}",
    "在{quadrant}画着一个{colour}{size}{shape}",
)
"""Sentences that name one object. A caption has one form: its sentences, joined by commas."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "圆形": ("圆圈", "圆"),
    "正方形": ("方块", "方形"),
    "三角形": ("三角",),
    "五角星": ("星星", "星形"),
    "大": ("大号",),
    "小": ("小号",),
    "橙色": ("橘色",),
    "左上角": ("左上方",),
    "右上角": ("右上方",),
    "左下角": ("左下方",),
    "右下角": ("右下方",),
}
"""Further words for the words of scenes. No word stands for two things."""


@dataclass(frozen=True, kw_only=True)
class Variety:
    """Limits of the looks and captions of scenes."""

    position_jitter: float
    """Largest distance of an object's centre from its quadrant's, pixels along x and along y. An
    object that would leave its quadrant moves less."""
    step: float
    """Step of positions and radii, pixels: a multiple of an eighth."""
    radii: Mapping[str, tuple[float, float]]
    """Smallest and largest radius by size, pixels."""
    rotation: float
    """Largest rotation to either side, degrees."""
    colour_jitter: int
    """Largest distance of each channel from the named colour, of 0 to 255."""
    backgrounds: tuple[Colour, ...]
    """RGB of the backgrounds, equally frequent."""
    caption_forms: tuple[str, ...]
    """Forms of captions, equally frequent: members of `FORMS`."""
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further words for a word of scenes, as frequent as the word itself."""
    any_order: bool
    """Whether captions name the objects in any order, instead of that of `QUADRANTS`."""


VARIETIES: Mapping[str, Variety] = {
    "moderate": Variety(
        position_jitter=2.0,
        step=1.0,
        radii={"大": (12.0, 14.0), "小": (7.0, 9.0)},
        rotation=0.0,
        colour_jitter=0,
        backgrounds=(WHITE,),
        caption_forms=FORMS[:2],
        any_order=False,
    ),
    "exact": Variety(
        position_jitter=0.0,
        step=0.125,
        radii={"大": (12.0, 12.0), "小": (7.5, 7.5)},
        rotation=0.0,
        colour_jitter=0,
        backgrounds=(WHITE,),
        caption_forms=FORMS,
        synonyms=SYNONYMS,
        any_order=True,
    ),
    "varied": Variety(
        position_jitter=4.0,
        step=0.125,
        radii={"大": (11.0, 13.0), "小": (6.5, 8.5)},
        rotation=15.0,
        colour_jitter=15,
        backgrounds=(WHITE, (255, 246, 228), (228, 240, 252), (234, 234, 234)),
        caption_forms=FORMS,
        synonyms=SYNONYMS,
        any_order=True,
    ),
}
"""Varieties by name. Exact scenes have the captions of varied ones, and one look for each thing."""
