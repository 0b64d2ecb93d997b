"""The training sequence of a run, from its settings and data sets.

Settings count steps, and shares of samples or tokens. The loader counts positions, and shares of
samples only. This module converts the ones into the others.
"""

from collections.abc import Iterator
from typing import Any

from ernie_vilg.config.batch_sizes import BatchSizes, BatchSizeStageConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.sequence.mixture import MixtureSegment, cycle_parts
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.errors import InputError
from ernie_vilg.preparation.lineage import Lineage
from ernie_vilg.storage.locations import shown


def token_sequence(
    config: PretrainConfig, lineage: Lineage, quarantine: Quarantine, *, with_pixels: bool
) -> TokenSequence:
    """Return the training sequence of a run.

    Args:
        config: the run.
        lineage: its data sets.
        quarantine: samples to exclude.
        with_pixels: whether pictures are read too.

    Raises:
        InputError: data sets are weighed by tokens, and one has no recorded number of tokens.
    """
    return TokenSequence(
        sources=lineage.data_sets,
        mixture=mixture_segments(config, lineage),
        seed=config.data.seed,
        shuffle_block_shards=config.data.shuffle_block_shards,
        quarantine=quarantine,
        loader=config.data.loader,
        model=config.model,
        with_pixels=with_pixels,
    )


def order_identity(config: PretrainConfig, lineage: Lineage, step: int) -> dict[str, Any]:
    """Return, as JSON values, everything that decided the order of the samples up to a step.

    A checkpoint of the step and the run that resumes it must agree on it. Later steps are no part
    of it: weights may change, and data sets may come and go. Before the first step it is the
    mixture of the first step.

    Args:
        config: the run.
        lineage: its data sets.
        step: the last step made; 0 before the first.

    Returns:
        seed, sizes, stages of a batch-size warm-up by first step, data sets by name, and the
        positions of a cycle that each data set has, by first position of the phase.
    """
    next_position = first_position(step + 1, config.batch_sizes)
    names = [data_set.name for data_set in lineage.data_sets]
    mixture = {
        str(phase.first_position): {
            name: part for name, part in zip(names, cycle_parts(phase.weights), strict=True) if part
        }
        for phase in mixture_segments(config, lineage)
        if phase.first_position < max(1, next_position)
    }
    drawn = {name for parts in mixture.values() for name in parts}
    warmup = {
        str(first): stage.global_batch_size
        for first, stage in _first_steps(config.batch_sizes)
        if first <= max(1, step)
    }
    return {
        "seed": config.data.seed,
        "shuffle_block_shards": config.data.shuffle_block_shards,
        "global_batch_size": config.parallelism.global_batch_size,
        **({"batch_size_warmup": warmup} if warmup else {}),
        "data_sets": {
            data_set.name: data_set.manifest.digest()
            for data_set in lineage.data_sets
            if data_set.name in drawn
        },
        "mixture": mixture,
    }


def mixture_segments(config: PretrainConfig, lineage: Lineage) -> tuple[MixtureSegment, ...]:
    """Return the weights of a run's data sets, by first position.

    Raises:
        InputError: data sets are weighed by tokens, and one has no recorded number of tokens.
    """
    tokens = {
        data_set.name: _mean_tokens(config, data_set) if config.data.weigh_by == "tokens" else 1.0
        for data_set in lineage.data_sets
    }
    return tuple(
        MixtureSegment(
            first_position=first_position(part.step + 1, config.batch_sizes),
            weights=tuple(
                part.weights[data_set.name] / tokens[data_set.name]
                for data_set in lineage.data_sets
            ),
        )
        for part in config.data.weights
    )


def _first_steps(sizes: BatchSizes) -> Iterator[tuple[int, BatchSizeStageConfig]]:
    """Yield the stages of a batch-size warm-up, each with its first step."""
    first = 1
    for stage in sizes.warmup:
        yield first, stage
        first += stage.steps


def _mean_tokens(config: PretrainConfig, data_set: DataSource) -> float:
    """Return the mean number of image codes and text ids of a data set's samples."""
    num_text_tokens = data_set.manifest.settings.get("num_text_tokens")
    if num_text_tokens is None:
        raise InputError(
            f"data.weigh_by=tokens with {config.data.setting_of(data_set.name)}="
            f"{shown(data_set.location)}, whose manifest has no num_text_tokens: encode them again "
            "with launch/encode_shards.py ... overwrite=true, or set data.weigh_by=samples"
        )
    return config.model.num_image_tokens + num_text_tokens / data_set.manifest.num_samples
