"""Settings of a run's data: one data set of token shards, or a mixture of several."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.schema import (
    Fraction,
    LocalInput,
    LocalOrRemote,
    MayChange,
    NaturalFloat,
    NaturalInt,
    NeverChanges,
    PositiveInt,
    Settings,
    Tracked,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import is_remote

ONLY_DATA_SET = "main"
"""Name of the only data set of a run without a mixture."""

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Names of data sets."""


@dataclass(frozen=True, kw_only=True)
class MixtureDataSetConfig:
    """One data set of a mixture."""

    token_shards: LocalOrRemote
    """Folder or URL written by launch/encode_shards.py."""
    weight: NaturalFloat
    """Weight of the data set, relative to the mixture's other weights; 0 draws nothing."""


@dataclass(frozen=True, kw_only=True)
class MixtureChangeConfig:
    """Change of a mixture's weights."""

    step: PositiveInt
    """Steps before the first one with these weights."""
    weights: dict[str, NaturalFloat]
    """Weight of every data set by name."""


@dataclass(frozen=True, kw_only=True)
class PretrainDataConfig(Settings, section="data"):
    """Locations of the training pairs and both tokenizers, and the order of the samples."""

    token_shards: MayChange[LocalOrRemote | None] = None
    """Folder or URL (s3://, gs://, https://) written by launch/encode_shards.py; null with a
    mixture."""
    mixture: MayChange[dict[str, MixtureDataSetConfig]] = field(default_factory=dict)
    """Data sets by name, instead of token_shards."""
    weigh_by: MayChange[Tracked[Literal["samples", "tokens"]]] = "samples"
    """Unit of the mixture's weights: samples, or tokens (image codes and text ids of a data set's
    mean sample)."""
    mixture_changes: MayChange[tuple[MixtureChangeConfig, ...]] = ()
    """Changes of the mixture's weights, in the order of their steps."""
    text_tokenizer: MayChange[LocalInput]  # the checkpoint knows its hash
    """Folder written by launch/train_text_tokenizer.py or launch/import_text_tokenizer.py."""
    image_tokenizer: MayChange[LocalInput]
    """Image tokenizer weights written by launch/train_image_tokenizer.py."""
    expected_pairs: MayChange[PositiveInt | None] = None
    """Number of pairs that all data sets together will have, from which a plan counts epochs while
    there are no token shards; null if it is not known."""
    seed: NeverChanges[Tracked[NaturalInt]] = 0
    """Seed of the order of the samples."""
    max_truncated_fraction: MayChange[Fraction] = 0.01
    """Largest fraction of a data set's captions that may be truncated to model.text_length ids."""
    shuffle_block_shards: NeverChanges[Tracked[PositiveInt]] = 16
    """Number of shards per data set and rank that are open, and shuffled together."""
    loader: MayChange[LoaderConfig] = field(default_factory=LoaderConfig)
    """Reading of one rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture:
            self._check_mixture()
        else:
            self._check_one_data_set()
        for name, location in self.locations.items():
            if is_remote(location) and self.loader.cache_dir is None:
                raise InputError(
                    f"{self.setting_of(name)} is a URL and data.loader.cache_dir is null: set it "
                    "to a folder on this node's own disk, into which shards are copied"
                )

    @property
    def locations(self) -> dict[str, str]:
        """Folder or URL of every data set by name, in the order of the names."""
        if self.token_shards is not None:
            return {ONLY_DATA_SET: self.token_shards}
        return {name: self.mixture[name].token_shards for name in sorted(self.mixture)}

    @property
    def weights(self) -> tuple[MixtureChangeConfig, ...]:
        """Weights of all data sets in the order of their steps, the first of which is 0."""
        weights = {name: data_set.weight for name, data_set in self.mixture.items()}
        first = MixtureChangeConfig(step=0, weights=weights or {ONLY_DATA_SET: 1.0})
        return (first, *self.mixture_changes)

    def setting_of(self, name: str) -> str:
        """Return the key of a data set's location."""
        if self.token_shards is not None:
            return "data.token_shards"
        return f"data.mixture.{name}.token_shards"

    def _check_one_data_set(self) -> None:
        if self.token_shards is None:
            raise InputError(
                "data.token_shards=null without a data.mixture: name a folder of token shards, or "
                "several in data.mixture"
            )
        if self.weigh_by != "samples" or self.mixture_changes:
            name = "mixture_changes" if self.mixture_changes else f"weigh_by={self.weigh_by}"
            raise InputError(
                f"data.{name} needs a mixture, and data.token_shards is one data set: leave it "
                "out, or name the data sets in data.mixture"
            )

    def _check_mixture(self) -> None:
        if self.token_shards is not None:
            raise InputError(
                f"data.token_shards is set, and data.mixture has {', '.join(self.mixture)}: set "
                "data.token_shards=null, or remove the mixture"
            )
        for name in self.mixture:
            if not NAME.fullmatch(name):
                raise InputError(
                    f"data.mixture: the name {name!r} must have the characters A-Z a-z 0-9 _ - only"
                )
        _check_weights(self.weights[0].weights, "data.mixture")
        for index, change in enumerate(self.mixture_changes):
            key = f"data.mixture_changes[{index}].weights"
            if set(change.weights) != set(self.mixture):
                raise InputError(
                    f"{key} names {', '.join(sorted(change.weights)) or 'no data set'}: give one "
                    f"weight for each of {', '.join(sorted(self.mixture))}; 0 draws none"
                )
            _check_weights(change.weights, key)
        steps = [0, *(change.step for change in self.mixture_changes)]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise InputError(
                f"data.mixture_changes are at steps {steps[1:]}: use increasing steps from 1; "
                "data.mixture has the weights of step 0"
            )


def _check_weights(weights: Mapping[str, float], key: str) -> None:
    if not any(weights.values()):
        raise InputError(f"{key}: all weights are 0, set one above 0")
