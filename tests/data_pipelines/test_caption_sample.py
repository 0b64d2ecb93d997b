"""A uniform sample of bounded size is trained on, and other captions are measured."""

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from data_pipelines.caption_sample import Reservoir, draw_captions, is_held_out
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError

CAPTIONS = [f"第{number}张照片" for number in range(2000)]


def settings(**values: object) -> TrainTextTokenizerConfig:
    return TrainTextTokenizerConfig(shards="images", output_dir="o", **values)


def test_every_caption_is_as_likely_as_any_other() -> None:
    counts: Counter[str] = Counter()
    for seed in range(4000):
        reservoir = Reservoir(2, str(seed))
        for caption in "abcde":
            reservoir.add(caption)
        counts.update(reservoir.captions)

    # 2 / 5 of 4,000 samples each, with a standard deviation of 31.
    assert all(abs(counts[caption] - 1600) < 5 * 31 for caption in "abcde"), counts


def test_the_samples_hold_no_more_captions_than_asked_for() -> None:
    reservoir = Reservoir(7, "0")
    largest = 0
    for caption in CAPTIONS:
        reservoir.add(caption)
        largest = max(largest, len(reservoir.captions))

    assert largest == 7
    assert reservoir.num_added == 2000


def test_the_seed_decides_about_the_sample_and_nothing_else_does() -> None:
    drawn = [
        draw_captions(iter(CAPTIONS), settings(sample_captions=50, seed=seed)).training
        for seed in (3, 3, 4)
    ]

    assert drawn[0] == drawn[1]
    assert set(drawn[0]) != set(drawn[2])
    assert len(set(drawn[0])) == 50


def test_no_caption_is_both_trained_on_and_measured() -> None:
    again = ["".join(list(caption)) for caption in CAPTIONS]  # equal texts, other objects
    sample = draw_captions([*CAPTIONS, *again], settings(held_out_fraction=0.1))

    assert not {*sample.training} & {*sample.measured}
    assert {*sample.training} | {*sample.measured} == {*CAPTIONS}
    assert len(sample.measured) == sample.num_held_out
    assert 2 * 140 < sample.num_held_out < 2 * 260  # 200 different ones, standard deviation 13
    assert sample.counts() == {
        "read": 4000,
        "held_out": sample.num_held_out,
        "measured": sample.num_held_out,
        "trained_on": 4000 - sample.num_held_out,
        "cut": 0,
    }


def test_the_same_texts_are_held_out_for_every_seed() -> None:
    measured = [
        draw_captions(CAPTIONS, settings(seed=seed, sample_captions=9)).measured for seed in (0, 1)
    ]

    assert measured[0] == measured[1] != []


def test_what_is_held_out_of_a_fraction_is_held_out_of_a_larger_one() -> None:
    few = {caption for caption in CAPTIONS if is_held_out(caption, 0.02)}

    assert few < {caption for caption in CAPTIONS if is_held_out(caption, 0.2)}


def test_a_long_caption_is_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    config = settings(max_caption_characters=5, held_out_fraction=0)

    sample = draw_captions(["红色的圆", "红色的圆形", "红色的大圆形"], config)

    assert sample.training == ["红色的圆", "红色的圆形", "红色的大圆"]
    assert sample.num_cut == 1
    assert "1 of 3 captions have more than max_caption_characters=5 and are cut" in caplog.text


def test_a_sample_larger_than_there_are_captions_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    sample = draw_captions(["红", "绿"], settings(sample_captions=3, held_out_fraction=0))

    assert sample.training == ["红", "绿"]
    assert "2 of the other 2 are trained on (sample_captions=3: there are no more)" in caplog.text


def test_a_split_that_measures_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    draw_captions(["红"], settings(held_out_fraction=1e-9))

    assert "holds none of 1 captions out, so the card has no figures" in caplog.text


@pytest.mark.parametrize("captions", [[], ["红"]], ids=["none at all", "all held out"])
def test_no_caption_to_train_on_is_an_error(captions: list[str]) -> None:
    with pytest.raises(InputError, match=r"shards=images .* none is left to train on"):
        draw_captions(captions, settings(held_out_fraction=0.9999999))


def test_an_error_of_reading_captions_is_told_as_it_is() -> None:
    def damaged() -> Iterator[str]:
        yield "红"
        raise InputError("shard 7 is damaged: copy it again")

    with pytest.raises(InputError, match=r"^shard 7 is damaged: copy it again$"):
        draw_captions(damaged(), settings())
