"""Transforms of captions; the metadata record each one that changed something.

Source: OpenCC's conversion t2s (https://github.com/BYVoid/OpenCC), which converts words before
characters.
"""

from collections.abc import Callable, Iterator

from data_pipelines.curation.extras import import_extra
from ernie_vilg.config.curation import Rules

Transform = tuple[str, Callable[[str], str]]
"""Name in the metadata, and the function from a clean caption to another."""

TRADITIONAL_TO_SIMPLIFIED = "traditional_to_simplified"


def transforms(rules: Rules) -> Iterator[Transform]:
    """Yield the transforms that are on, in the order of `Rules`.

    Raises:
        InputError: opencc is not installed.
    """
    if rules.to_simplified:
        opencc = import_extra("opencc", extra="curation", setting="to_simplified")
        yield TRADITIONAL_TO_SIMPLIFIED, opencc.OpenCC("t2s").convert
