"""Captions that are longer than a model's text slots: their number, and its limit.

A truncated caption teaches a model to draw, and to write, half of the text. Encoding records the
lengths of captions; a run compares them with its slots before it builds anything.
"""

import math
from collections.abc import Mapping

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.errors import InputError
from ernie_vilg.preparation.lineage import Lineage
from ernie_vilg.storage.caption_lengths import num_longer, slots_that_fit
from ernie_vilg.storage.locations import shown
from ernie_vilg.storage.shard_manifest import (
    CAPTION_LENGTHS,
    NUM_CAPTIONS,
    Manifest,
    caption_lengths_of,
)


def check_truncation(config: PretrainConfig, lineage: Lineage) -> dict[str, str]:
    """Count the captions that a run would truncate.

    Args:
        config: the run.
        lineage: its data sets.

    Returns:
        a sentence per data set about its truncated captions, by the name of the data set, or by
        `held_out_name`.

    Raises:
        InputError: more than `data.max_truncated_fraction` of a data set that the run reads
            would be truncated, or a manifest holds impossible lengths.
    """
    data, slots = config.data, config.model.text_length
    found, excesses = {}, {}
    for name, (data_set, setting) in _places(config, lineage).items():
        lengths = _caption_lengths(data_set, setting)
        if lengths is None:
            found[name] = (
                f"unknown how many captions are longer than model.text_length={slots} and cut: the "
                f"manifest has no {CAPTION_LENGTHS}; encode the shards again to know"
            )
            continue
        num_cut, num_captions = num_longer(lengths, slots), _num_captions(data_set.manifest)
        found[name] = (
            f"{num_cut:,} of {num_captions:,} captions ({num_cut / num_captions:.2%}) are longer "
            f"than model.text_length={slots} and cut"
        )
        is_read = any(part.weights.get(name, 1) > 0 for part in data.weights)
        if is_read and num_cut > data.max_truncated_fraction * num_captions:
            excesses[name] = lengths
    if excesses:
        raise InputError(_refusal(config, lineage, found, excesses))
    return found


def _places(config: PretrainConfig, lineage: Lineage) -> dict[str, tuple[DataSource, str]]:
    """Return each set and its setting by the name in the result."""
    trained = {each.name: (each, config.data.setting_of(each.name)) for each in lineage.data_sets}
    held_out = {
        held_out_name(each.name): (each, config.validation.setting_of(each.name))
        for each in lineage.held_out
    }
    return {
        name: (data_set, f"{setting}={shown(data_set.location)}")
        for name, (data_set, setting) in (trained | held_out).items()
    }


def held_out_name(name: str) -> str:
    """Return the name of held-out pairs beside the data sets' names."""
    return f"validation {name}"


def _caption_lengths(data_set: DataSource, setting: str) -> dict[int, int] | None:
    """Return the number of captions by number of ids, end of text included; None if unknown."""
    recorded = data_set.manifest.settings.get(CAPTION_LENGTHS)
    if recorded is None:
        return None
    try:
        return caption_lengths_of(recorded, _num_captions(data_set.manifest))
    except InputError as error:
        raise InputError(f"{setting}: {error}") from error


def _num_captions(manifest: Manifest) -> int:
    return int(manifest.settings.get(NUM_CAPTIONS, manifest.num_samples))


def _refusal(
    config: PretrainConfig,
    lineage: Lineage,
    found: Mapping[str, str],
    excesses: Mapping[str, Mapping[int, int]],
) -> str:
    data, slots = config.data, config.model.text_length
    places = _places(config, lineage)
    heading = "; ".join(f"{places[name][1]}: {found[name]}" for name in excesses)
    enough = max(slots_that_fit(part, data.max_truncated_fraction) for part in excesses.values())
    all_fit = max(max(lengths) for lengths in excesses.values())
    none_cut = f" ({all_fit} cuts none)" if all_fit > enough else ""
    worst = max(num_longer(part, slots) / sum(part.values()) for part in excesses.values())
    return (
        f"{heading}, more than data.max_truncated_fraction={data.max_truncated_fraction}: set "
        f"model.text_length={enough}{none_cut}; or encode the shards again with a text tokenizer "
        "of a larger vocab_size or of captions like these, which needs fewer ids; or allow it "
        f"with data.max_truncated_fraction={math.ceil(100 * worst) / 100}"
    )
