"""Missing or contradictory data sets, weights and changes are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.data import MixtureChangeConfig, MixtureDataSetConfig, PretrainDataConfig
from ernie_vilg.config.loader import LoaderConfig
from tests.config.test_pretrain import run_with


def data_sets(**weights: float) -> dict[str, MixtureDataSetConfig]:
    return {
        name: MixtureDataSetConfig(token_shards=f"shards/{name}", weight=weight)
        for name, weight in weights.items()
    }


def change(step: int, **weights: float) -> MixtureChangeConfig:
    return MixtureChangeConfig(step=step, weights=weights)


def settings_with(**settings: Any) -> PretrainDataConfig:
    return PretrainDataConfig(text_tokenizer="text", image_tokenizer="image", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "data.token_shards=null without a data.mixture", id="nothing"),
        pytest.param(
            {"token_shards": "one", "mixture": data_sets(cc=1)},
            "set data.token_shards=null",
            id="one data set and a mixture",
        ),
        pytest.param(
            {"token_shards": "one", "mixture_changes": (change(1, main=1),)},
            "data.mixture_changes needs a mixture",
            id="changes without a mixture",
        ),
        pytest.param(
            {"token_shards": "one", "weigh_by": "tokens"},
            "data.weigh_by=tokens needs a mixture",
            id="weighing without a mixture",
        ),
        pytest.param(
            {"mixture": data_sets(cc=1), "weigh_by": "bytes"},
            "data.weigh_by=bytes: choose samples or tokens",
            id="weighing by something else",
        ),
        pytest.param(
            {"token_shards": "one", "max_truncated_fraction": 1.5},
            r"data\.max_truncated_fraction=1\.5: must be at least 0 and at most 1",
            id="more captions cut than all",
        ),
        pytest.param(
            {"mixture": {"a.b": data_sets(cc=1)["cc"]}},
            "the name 'a.b' must have",
            id="dotted name",
        ),
        pytest.param(
            {"mixture": data_sets(cc=1, wukong=-0.5)},
            r"data\.mixture\.wukong\.weight=-0\.5: must be at least 0",
            id="negative weight",
        ),
        pytest.param(
            {"mixture": data_sets(cc=float("nan"))},
            "must be a finite number",
            id="a weight that is no number",
        ),
        pytest.param(
            {"mixture": data_sets(cc=0, wukong=0)}, "all weights are 0", id="nothing to draw"
        ),
        pytest.param(
            {"mixture": data_sets(cc=1), "mixture_changes": (change(5, cc=0),)},
            r"mixture_changes\[0\]\.weights: all weights are 0",
            id="nothing to draw later",
        ),
        pytest.param(
            {"mixture": data_sets(cc=1, wukong=1), "mixture_changes": (change(5, cc=1),)},
            "names cc: give one weight for each of cc, wukong",
            id="a change that leaves one out",
        ),
        pytest.param(
            {"mixture": data_sets(cc=1), "mixture_changes": (change(5, cc=1, laion=1),)},
            "names cc, laion: give one weight for each of cc;",
            id="a change of an unknown one",
        ),
        pytest.param(
            {"mixture": data_sets(cc=1), "mixture_changes": (change(0, cc=2),)},
            r"data\.mixture_changes\[0\]\.step=0: must be at least 1",
            id="a change at the start",
        ),
        pytest.param(
            {"mixture": data_sets(cc=1), "mixture_changes": (change(9, cc=2), change(9, cc=1))},
            r"at steps \[9, 9\]: use increasing steps",
            id="two changes at a step",
        ),
        pytest.param({"token_shards": "one", "seed": -1}, "must be at least 0", id="seed"),
        pytest.param(
            {"token_shards": "s3://bucket/one"},
            "data.token_shards is a URL and data.loader.cache_dir is null",
            id="remote without a cache",
        ),
        pytest.param(
            {"mixture": {"cc": MixtureDataSetConfig(token_shards="gs://b/cc", weight=1)}},
            "data.mixture.cc.token_shards is a URL",
            id="remote in a mixture without a cache",
        ),
    ],
)
def test_data_settings_are_refused_with_the_fix(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_with(**settings)


def test_a_mixture_is_in_the_order_of_its_names() -> None:
    settings = settings_with(
        mixture=data_sets(wukong=1, cc=2), mixture_changes=(change(7, wukong=3, cc=0),)
    )

    assert list(settings.locations.items()) == [("cc", "shards/cc"), ("wukong", "shards/wukong")]
    assert [(part.step, part.weights) for part in settings.weights] == [
        (0, {"wukong": 1, "cc": 2}),
        (7, {"wukong": 3, "cc": 0}),
    ]


def test_one_data_set_is_called_main() -> None:
    settings = settings_with(token_shards="one")

    assert settings.locations == {"main": "one"}
    assert settings.weights == (change(0, main=1.0),)


def test_missing_folders_of_a_mixture_are_named_and_urls_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    locations = {"a": str(tmp_path / "there"), "b": "nowhere", "c": "https://host/shards"}
    mixture = {
        name: MixtureDataSetConfig(token_shards=location, weight=1.0)
        for name, location in locations.items()
    }
    loader = LoaderConfig(cache_dir="cache")
    settings = PretrainDataConfig(
        mixture=mixture, loader=loader, text_tokenizer=str(tmp_path), image_tokenizer=str(tmp_path)
    )
    config = replace(run_with({}, {}), data=settings)

    assert config.missing_folders() == {"data.mixture.b.token_shards": "nowhere"}
    with pytest.raises(ValueError, match=r"data\.mixture\.b\.token_shards=nowhere is not a folder"):
        config.check_paths()
