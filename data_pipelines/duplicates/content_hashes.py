"""Hashes of equal pictures and of equal captions."""

import hashlib
import re
import unicodedata

from PIL import Image

_SPECIAL = re.compile(r"[\W_]+")
_SPACE_BESIDE_CHINESE = re.compile("(?<=[\u2e80-\U0003ffff]) | (?=[\u2e80-\U0003ffff])")


def sha256_of_pixels(image: Image.Image) -> str:
    """Return the SHA-256 of an upright RGB picture: its size, then its pixels, row by row."""
    digest = hashlib.sha256(f"{image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def normalise_text(caption: str) -> str:
    """Return what a caption says, so that equal captions become equal strings.

    Compatible forms become one (NFKC: full-width letters, for example), upper case becomes lower
    case, punctuation and white space become one space, and none is left beside a Chinese, Japanese
    or Korean character. Digits, emoji and other symbols stay.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    spaced = _SPECIAL.sub(_without_punctuation, folded)
    text = _SPACE_BESIDE_CHINESE.sub("", " ".join(spaced.split()))
    return text or folded  # of a caption that is nothing but punctuation


def sha256_of_text(caption: str) -> str:
    """Return the SHA-256 of a caption after `normalise_text`."""
    return hashlib.sha256(normalise_text(caption).encode()).hexdigest()


def _without_punctuation(found: re.Match[str]) -> str:
    return "".join(
        " " if character.isspace() or unicodedata.category(character)[0] in "PZ" else character
        for character in found[0]
    )
