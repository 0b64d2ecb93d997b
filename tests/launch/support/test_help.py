"""--help lists every setting with its type, default and docstring."""

from ernie_vilg.config.shards import BuildShardsConfig
from launch.support.help import help_text


def test_settings_of_named_sections_are_listed() -> None:
    text = help_text("build_shards", BuildShardsConfig, "Build shards.")

    assert "  sources.NAME.location: text, required\n" in text
    assert (
        "  curation.rules.NAME.min_side: whole number at least 1, or null = null\n"
        "      Smallest width and height of a picture, pixels.\n"
    ) in text
    assert "  curation=ernie_vilg, none (default none)\n" in text
