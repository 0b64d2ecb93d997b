"""Bases of emoji: what is left of a sequence without skin tones, genders and directions.

Noto names its files by their code points, such as `emoji_u1f9d1_1f3fd_200d_1f9af_200d_27a1.png`: a
person of medium skin tone with a white cane, facing right. Its base is a person with a white cane.
Hair and objects belong to the base. A sequence that consists of modifiers only, such as the female
sign, is its own base.

Source: emoji modifiers, ZWJ sequences, gender and direction of Unicode Technical Standard 51,
sections 2.3, 2.4 and 2.10; the file names are those of googlefonts/noto-emoji.
"""

import re

from ernie_vilg.errors import InputError

SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
GENDER_SIGNS = frozenset({"2640", "2642"})  # female, male
FACING_RIGHT = "27a1"
JOINERS = frozenset({"200d", "fe0f"})  # zero-width joiner, emoji presentation
WITHOUT_GENDER = {
    "1f468": "1f9d1",  # man, person
    "1f469": "1f9d1",  # woman
    "1f466": "1f9d2",  # boy, child
    "1f467": "1f9d2",  # girl
    "1f474": "1f9d3",  # old man, older person
    "1f475": "1f9d3",  # old woman
}

_NAME = re.compile(r"(?:.*/)?emoji_u([0-9a-f]{4,5}(?:_[0-9a-f]{4,5})*)\.[a-z]+", re.ASCII)
_MODIFIERS = SKIN_TONES | GENDER_SIGNS | JOINERS | {FACING_RIGHT}


def base_of_emoji(path: str) -> str:
    """Return the base of an emoji: its code points without variants, joined by underscores.

    Args:
        path: path or name of its file.

    Raises:
        InputError: the name does not list code points.
    """
    found = _NAME.fullmatch(path)
    if found is None:
        raise InputError(
            f"{path!r:.300} does not name an emoji, as emoji_u1f44d_1f3fd.png does: set base_key "
            "to the key of captions.jsonl that names the base of each picture"
        )
    points = found[1].split("_")
    base = [WITHOUT_GENDER.get(point, point) for point in points if point not in _MODIFIERS]
    return "_".join(base or points)
