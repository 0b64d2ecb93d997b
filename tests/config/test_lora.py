"""Settings of adapters that cannot work are refused, and the message says why."""

from dataclasses import replace
from typing import Any

import pytest

from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.errors import InputError
from ernie_vilg.preparation.trained_parameters import count_trained, trained_in_words
from tests.model.tiny import CONFIG
from tests.parallel.parity import MODEL, Row, config_of


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"rank": -1}, r"model\.lora\.rank=-1", id="negative rank"),
        pytest.param({"rank": 16}, r"model\.lora\.rank=16 with model\.hidden_size=16", id="high"),
        pytest.param({"rank": 2, "alpha": 0.0}, r"model\.lora\.alpha=0", id="no effect"),
        pytest.param({"alpha": 8.0}, r"with model\.lora\.rank=0, which adds no", id="off"),
        pytest.param({"rank": 2, "targets": ()}, r"targets is empty", id="no pattern"),
        pytest.param(
            {"rank": 2, "targets": ("*.attention.*", "*.atention.output")},
            r"targets=\*\.atention\.output matches no linear layer .* such as 2\.attention\.output",
            id="nothing",
        ),
        pytest.param({"rank": 2, "targets": ("*.norm",)}, r"matches no linear", id="a norm"),
        pytest.param({"rank": 2, "targets": ("0.*",)}, r"matches no linear", id="the embedding"),
        pytest.param({"rank": 2, "targets": ("*.weight",)}, r"matches no linear", id="parameters"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, lora=LoraConfig(**settings))


def test_fresh_weights_and_other_frozen_parameters_are_refused() -> None:
    config = config_of(Row(tensor=1, pipeline=1, data=1))
    adapted = replace(MODEL, lora=LoraConfig(rank=2))

    with pytest.raises(InputError, match=r"rank=2 with initialize_from=null: .* Set initialize_fr"):
        replace(config, model=adapted)
    training = replace(config.training, frozen=("1.*",))
    with pytest.raises(InputError, match=r"rank=2 with training\.frozen=1\.\*"):
        replace(config, model=adapted, initialize_from="weights", training=training)


def test_every_pipeline_stage_must_have_an_adapter() -> None:
    lora = LoraConfig(rank=2, targets=("1.attention.output", "2.*"))
    one, two = (
        replace(
            config_of(Row(tensor=1, pipeline=stages, data=1)),
            model=replace(MODEL, lora=lora),
            initialize_from="weights",
        )
        for stages in (1, 2)
    )
    hidden = MODEL.hidden_size
    expected = 2 * (2 * hidden + 2 * hidden + 4 * hidden + 2 * 5 * hidden)

    assert count_trained(one) == expected == 1152
    assert trained_in_words(one, expected) == (
        "1,152 parameters, adapters of rank 2; the others keep their values"
    )
    with pytest.raises(InputError, match=r"targets=1.*adapts no layer of the pipeline stage of la"):
        count_trained(two)
