"""The rules of one source, ready to be applied."""

from collections.abc import Sequence

from PIL import Image

from data_pipelines.curation.verdicts import CaptionVerdict, Verdict
from ernie_vilg.config.curation import CurationConfig, Rules


class Curator:
    """Applies the rules of one source. It loads models once; every process makes its own."""

    def __init__(self, config: CurationConfig, rules: Rules) -> None:
        """Load what the rules need.

        Raises:
            InputError: a package or model that a rule needs is missing; the message names the
                extra or the setting.
        """
        self._config = config
        self._rules = rules

    def check_caption(self, caption: str) -> CaptionVerdict:
        """Transform and judge a cleaned caption."""
        return CaptionVerdict(caption=caption)

    def check_picture(self, image: Image.Image, *, is_animated: bool) -> Verdict:
        """Judge a picture: RGB, upright, of its own size."""
        return Verdict()

    def check_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[Verdict]:
        """Judge pairs by models, a batch at a time.

        Args:
            images: RGB pictures, reduced to at most `VIEW_SIDE` pixels a side by the caller.
            captions: their captions.
        """
        return [Verdict() for _ in captions]


VIEW_SIDE = 960
"""Longest side of the pictures that models see, pixels."""
