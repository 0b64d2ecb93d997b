"""Counts of a token set's captions: against its manifest, and against a model's text slots."""

from collections.abc import Mapping

from data_pipelines.audit.checks import Tallies
from data_pipelines.audit.tokens import TokenFindings
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.storage.caption_lengths import num_longer, slots_that_fit
from ernie_vilg.storage.shard_manifest import CAPTION_LENGTHS, NUM_CAPTIONS, Manifest


def check_counts(manifest: Manifest, found: TokenFindings, tallies: Tallies) -> None:
    """Compare the counts that the manifest records with those of its shards.

    Args:
        manifest: manifest of the token shards.
        found: counts of all of them.
        tallies: takes the problems.
    """
    lengths = found.caption_lengths
    counted: Mapping[str, object] = {
        "max_text_tokens": max(lengths, default=1) - 1,
        "num_text_tokens": sum((length - 1) * count for length, count in lengths.items()),
        CAPTION_LENGTHS: {str(length): lengths[length] for length in sorted(lengths)},
        NUM_CAPTIONS: sum(lengths.values()),
    }
    for name, value in counted.items():
        recorded = manifest.settings.get(name, value)  # older shards do not record everything
        problems = []
        if recorded != value:
            problems = [
                f"{name} is {recorded!r:.120} in the manifest, {value!r:.120} in the shards"
            ]
        tallies["counts"].add(problems, checked=int(name in manifest.settings))


def check_truncation(config: AuditShardsConfig, found: TokenFindings, tallies: Tallies) -> None:
    """Check that few enough captions are longer than the model's text slots."""
    if config.text_length is None:
        return
    lengths = found.caption_lengths
    num_captions, num_cut = sum(lengths.values()), num_longer(lengths, config.text_length)
    problems = []
    if num_cut > config.max_truncated_fraction * num_captions:
        enough = slots_that_fit(lengths, config.max_truncated_fraction)
        problems = [
            f"{num_cut:,} of {num_captions:,} captions ({num_cut / num_captions:.2%}) are longer "
            f"than text_length={config.text_length} and cut, more than max_truncated_fraction="
            f"{config.max_truncated_fraction}: {enough} slots would do ({max(lengths)} cut none)"
        ]
    tallies["truncation"].add(problems, checked=num_captions)
