"""What a program does about curation once, before its tasks begin."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.curation.models.loading import model_hashes
from ernie_vilg.config.curation import CurationConfig, Rules


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
    """Check that all models are there, hash them, and make the database of translations.

    Args:
        config: the settings.
        rules: rules of every source.
        folder: existing folder of the work, which every process sees.

    Raises:
        InputError: a model or a file is missing, damaged, or not the required one.
    """
    hashes = model_hashes(config, rules)
    if config.translation_file is not None and "translation_file" in hashes:
        from data_pipelines.curation.models.translation_file import write_lookup

        lookup = write_lookup(Path(config.translation_file), folder)
        config = dataclasses.replace(config, translation_file=str(lookup))
    return PreparedCuration(config=config, model_hashes=hashes)
