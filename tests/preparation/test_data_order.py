"""Settings become positions of the sequence; a resumed run may change only later ones."""

import json
from dataclasses import replace
from typing import Any

import pytest

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import MixtureChangeConfig, MixtureDataSetConfig, PretrainDataConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, TrainingConfig
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.quarantine import Quarantine, QuarantineEntry
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.preparation.data_order import mixture_segments, order_identity, token_sequence
from ernie_vilg.preparation.lineage import Lineage
from ernie_vilg.storage.shard_manifest import Manifest, Shard

MODEL = ModelConfig(
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    text_vocab_size=320,
    text_length=12,
    codebook_size=16,
    image_grid_size=4,
)
TEXT_TOKENS = {"cc": 140, "main": 100, "wukong": 40}
"""Text tokens of data sets with ten samples each; a sample has 16 image codes too."""


def run_of(**data: Any) -> PretrainConfig:
    return PretrainConfig(
        run_dir="unused",
        model=MODEL,
        data=PretrainDataConfig(**{"text_tokenizer": "t", "image_tokenizer": "i", **data}),
        parallelism=ParallelismConfig(micro_batch_size=1, global_batch_size=8),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
        training=TrainingConfig(steps=10),
        checkpoint=CheckpointConfig(every=10),
    )


def mixture_of(
    *changes: tuple[int, dict[str, float]], weigh_by: str = "samples", **weights: float
) -> PretrainConfig:
    mixture = {
        name: MixtureDataSetConfig(token_shards=name, weight=weight)
        for name, weight in weights.items()
    }
    return run_of(
        mixture=mixture,
        weigh_by=weigh_by,
        mixture_changes=tuple(
            MixtureChangeConfig(step=step, weights=later) for step, later in changes
        ),
    )


def lineage_of(config: PretrainConfig, **text_tokens: int | None) -> Lineage:
    """Return a lineage with the data sets of the settings."""
    sources = []
    for name, location in config.data.locations.items():
        count = text_tokens.get(name, TEXT_TOKENS[name])
        shard = Shard(file="0.tar", samples=10, bytes=0, sha256=name, members=())
        settings = {} if count is None else {"num_text_tokens": count}
        manifest = Manifest(kind="token", shards=(shard,), settings=settings, lineage={})
        sources.append(DataSource(name=name, location=location, manifest=manifest))
    return Lineage(
        data_sets=tuple(sources),
        text_tokenizer="",
        image_tokenizer="",
        image_tokenizer_config=ImageTokenizerConfig(image_size=64),
    )


def phases(config: PretrainConfig) -> tuple[MixtureSegment, ...]:
    return mixture_segments(config, lineage_of(config))


def identity(config: PretrainConfig, step: int) -> dict[str, Any]:
    value = order_identity(config, lineage_of(config), step)
    assert json.loads(json.dumps(value)) == value
    return value


def test_one_data_set_has_one_phase() -> None:
    config = run_of(token_shards="shards")

    assert phases(config) == (MixtureSegment(first_position=0, weights=(1.0,)),)


def test_steps_become_positions() -> None:
    config = mixture_of((3, {"wukong": 0.0, "cc": 1.0}), wukong=2.0, cc=1.0)

    assert phases(config) == (
        MixtureSegment(first_position=0, weights=(1.0, 2.0)),  # cc, wukong
        MixtureSegment(first_position=24, weights=(1.0, 0.0)),
    )


def test_shares_of_tokens_become_shares_of_samples() -> None:
    config = mixture_of(weigh_by="tokens", wukong=1.0, cc=3.0)

    # 16 + 14 = 30 tokens per sample of cc, 16 + 4 = 20 of wukong.
    (phase,) = phases(config)
    assert phase.weights == pytest.approx((3.0 / 30, 1.0 / 20))


def test_tokens_that_were_not_counted_ask_to_encode_again() -> None:
    config = mixture_of(weigh_by="tokens", wukong=1.0, cc=3.0)

    with pytest.raises(
        ValueError, match=r"data\.mixture\.wukong\.token_shards=wukong, .* encode them again"
    ):
        mixture_segments(config, lineage_of(config, wukong=None))


def test_the_sequence_holds_all_that_reading_depends_on() -> None:
    config = run_of(token_shards="shards", seed=3, shuffle_block_shards=5)
    lineage = lineage_of(config)
    quarantine = Quarantine(entries=(QuarantineEntry(key="a"),))

    sequence = token_sequence(config, lineage, quarantine, with_pixels=False)

    assert sequence.sources == lineage.data_sets
    assert sequence.mixture == (MixtureSegment(first_position=0, weights=(1.0,)),)
    assert (sequence.seed, sequence.shuffle_block_shards) == (3, 5)
    assert (sequence.quarantine, sequence.model) == (quarantine, MODEL)
    assert (sequence.loader, sequence.with_pixels) == (config.data.loader, False)


def test_identity_of_one_data_set() -> None:
    config = run_of(token_shards="shards", seed=3)

    assert identity(config, step=5) == {
        "seed": 3,
        "shuffle_block_shards": 16,
        "global_batch_size": 8,
        "data_sets": {"main": lineage_of(config).data_sets[0].manifest.digest()},
        "mixture": {"0": {"main": 65536}},
    }


BEFORE = mixture_of((3, {"cc": 1.0, "wukong": 3.0}), cc=1.0, wukong=1.0)


@pytest.mark.parametrize(
    ("step", "after", "may_resume"),
    [
        pytest.param(3, mixture_of(cc=1.0, wukong=1.0), True, id="a change of the next step"),
        pytest.param(
            3, mixture_of((3, {"cc": 0.0, "wukong": 1.0}), cc=1.0, wukong=1.0), True, id="to other"
        ),
        pytest.param(4, mixture_of(cc=1.0, wukong=1.0), False, id="a change that was made"),
        pytest.param(2, mixture_of(cc=2.0, wukong=1.0), False, id="the first weights"),
        pytest.param(0, mixture_of(cc=2.0, wukong=1.0), False, id="the first weights at once"),
        pytest.param(
            4, mixture_of((3, {"cc": 2.0, "wukong": 6.0}), cc=5.0, wukong=5.0), True, id="the scale"
        ),
        pytest.param(
            4,
            mixture_of(
                (3, {"cc": 1.0, "main": 0.0, "wukong": 3.0}),
                (4, {"cc": 1.0, "main": 1.0, "wukong": 3.0}),
                cc=1.0,
                main=0.0,
                wukong=1.0,
            ),
            True,
            id="one more data set from now on",
        ),
        pytest.param(
            4,
            replace(BEFORE, data=replace(BEFORE.data, shuffle_block_shards=2)),
            False,
            id="the shuffle",
        ),
    ],
)
def test_what_is_still_to_come_may_change(
    step: int, after: PretrainConfig, may_resume: bool
) -> None:
    assert (identity(after, step) == identity(BEFORE, step)) is may_resume


def test_one_data_set_may_grow_into_a_mixture() -> None:
    alone = run_of(token_shards="shards")
    mixed = mixture_of((5, {"main": 1.0, "wukong": 1.0}), main=1.0, wukong=0.0)

    assert identity(mixed, step=5) == identity(alone, step=5)
    assert identity(mixed, step=6) != identity(alone, step=6)
