"""The rules of one source, ready to be applied.

Rules are applied in the order of `ernie_vilg.config.curation.Rules`: for captions before pictures,
and cheap ones first. The first broken rule ends it. Measures are taken for the rules that are on,
and those that cost nothing (characters, width, height, animation) always.

A question and its answer are judged as one text, with a space between them. Translation takes each
for itself.
"""

from collections.abc import Sequence

from PIL import Image

from data_pipelines.captions import without_question_end
from data_pipelines.curation.language import language_rules
from data_pipelines.curation.models.loading import load_translator
from data_pipelines.curation.models.rules import judge_pairs, pair_rules, text_rules
from data_pipelines.curation.pictures import LoadedPicture, picture_rules
from data_pipelines.curation.text import character_rules
from data_pipelines.curation.transforms import transforms
from data_pipelines.curation.verdicts import CaptionVerdict, Verdict, broken, first_broken
from data_pipelines.curation.words import word_rules
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.vocabulary import QUESTION_END

VIEW_SIDE = 960
"""Longest side of the pictures that models see, pixels."""
TRANSLATED = "translated"
"""Name of the translation among the transforms in the metadata."""


class Curator:
    """Applies the rules of one source. It loads models once; every process makes its own."""

    def __init__(self, config: CurationConfig, rules: Rules) -> None:
        """Load what the rules need.

        Args:
            config: settings as `prepare_curation` returns them.
            rules: rules of the source.

        Raises:
            InputError: a package or model that a rule needs is missing; the message names the
                extra or the setting.
        """
        self._transforms = tuple(transforms(rules))
        self._caption_rules = (
            *character_rules(rules),
            *language_rules(rules),
            *word_rules(rules),
        )
        self._translator = load_translator(config, rules)
        self._picture_rules = (*picture_rules(rules), *text_rules(rules))
        self._pair_rules = tuple(pair_rules(config, rules))

    def check_caption(self, caption: str) -> CaptionVerdict:
        """Transform and judge a cleaned caption."""
        return self.check_captions([caption])[0]

    def check_captions(self, captions: Sequence[str]) -> list[CaptionVerdict]:
        """Translate, transform and judge cleaned captions; they are translated in batches."""
        if self._translator is None:
            return [self._transform_and_judge(caption, ()) for caption in captions]
        rejection = broken(Reason.NOT_TRANSLATED, self._translator.why_none)
        return [
            CaptionVerdict(caption=caption, rejection=rejection)
            if translation is None
            else self._transform_and_judge(translation, (TRANSLATED,))
            for caption, translation in zip(captions, self._translated(captions), strict=True)
        ]

    def _translated(self, captions: Sequence[str]) -> list[str | None]:
        """Translate captions, or questions and answers; None where a part has no translation."""
        assert self._translator is not None
        parts = [caption.split(QUESTION_END) for caption in captions]
        translated = iter(self._translator.translate([part for each in parts for part in each]))
        together = [[next(translated) for _ in each] for each in parts]
        return [
            None if None in each else QUESTION_END.join(part for part in each if part is not None)
            for each in together
        ]

    def _transform_and_judge(self, caption: str, names: tuple[str, ...]) -> CaptionVerdict:
        """Judge a caption after the other transforms.

        Args:
            caption: the caption, translated if translations are on.
            names: names of the transforms so far.
        """
        for name, transform in self._transforms:
            transformed = transform(caption)
            if transformed != caption:
                caption, names = transformed, (*names, name)
        verdict = first_broken(self._caption_rules, without_question_end(caption))
        return CaptionVerdict(
            caption=caption,
            transforms=names,
            measures={"characters": len(caption), **verdict.measures},
            rejection=verdict.rejection,
        )

    def check_picture(self, image: Image.Image, *, is_animated: bool) -> Verdict:
        """Judge a picture: RGB, upright, of its own size."""
        picture = LoadedPicture(image=image, is_animated=is_animated)
        verdict = first_broken(self._picture_rules, picture)
        free = {"width": image.width, "height": image.height, "is_animated": is_animated}
        return Verdict(measures={**free, **verdict.measures}, rejection=verdict.rejection)

    def check_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[Verdict]:
        """Judge pairs by models, a batch at a time.

        Args:
            images: RGB pictures, reduced to at most `VIEW_SIDE` pixels a side by the caller.
            captions: their captions.
        """
        return judge_pairs(
            self._pair_rules, images, [without_question_end(caption) for caption in captions]
        )
