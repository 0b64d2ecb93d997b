"""Adapters start without effect, and merge into weights that compute the same."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.model.initialization import (
    has_partial_gradient,
    initialize,
    is_inner_matrix,
    split_dimension,
    takes_weight_decay,
)
from ernie_vilg.model.lora.merge import merged
from ernie_vilg.model.lora.names import adapter_names, is_adapter
from ernie_vilg.model.transformer import build_transformer, parameter_sizes
from ernie_vilg.model.weights import model_from_weights
from tests.model.tiny import CONFIG, tiny_model, tiny_pairs

LORA = LoraConfig(rank=3, alpha=6.0, targets=("*.attention.*", "2.feed_forward.down"))
ADAPTED = replace(CONFIG, lora=LORA)


def logits_of(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        output = model(tiny_pairs())
    return [output.image_logits, output.text_logits]


def test_only_the_named_layers_have_adapters() -> None:
    sizes = parameter_sizes(ADAPTED)
    hidden = CONFIG.hidden_size

    assert {name: size for name, size in sizes.items() if is_adapter(name)} == {
        "1.attention.query_key_value.lora_a.weight": 3 * hidden,
        "1.attention.query_key_value.lora_b.weight": 3 * 3 * hidden,
        "1.attention.output.lora_a.weight": 3 * hidden,
        "1.attention.output.lora_b.weight": 3 * hidden,
        "2.attention.query_key_value.lora_a.weight": 3 * hidden,
        "2.attention.query_key_value.lora_b.weight": 3 * 3 * hidden,
        "2.attention.output.lora_a.weight": 3 * hidden,
        "2.attention.output.lora_b.weight": 3 * hidden,
        "2.feed_forward.down.lora_a.weight": 3 * 4 * hidden,
        "2.feed_forward.down.lora_b.weight": 3 * hidden,
    }


def test_fresh_adapters_change_no_output() -> None:
    plain = tiny_model()
    start = {name: value.detach() for name, value in plain.named_parameters()}
    model = build_transformer(ADAPTED)
    initialize(model.named_parameters(), ADAPTED, seed=0, start=start.__getitem__)

    first = dict(model.named_parameters())["2.feed_forward.down.lora_a.weight"]
    assert first.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.2)
    for one, other in zip(logits_of(model.eval()), logits_of(plain), strict=True):
        assert one.equal(other)


def test_merged_weights_compute_what_the_adapted_model_does() -> None:
    model = tiny_model(ADAPTED)  # adds noise to every parameter, so no adapter is zero
    weights = {name: value.detach() for name, value in model.named_parameters()}
    config, whole = merged(ADAPTED, weights)
    unadapted = model_from_weights(CONFIG, {name: weights[name] for name in whole})

    assert config == CONFIG
    for one, other in zip(
        logits_of(model_from_weights(config, whole)), logits_of(model), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert not logits_of(unadapted)[0].allclose(logits_of(model)[0], atol=1e-2)


def test_a_model_without_adapters_is_merged_as_it_is() -> None:
    weights = {name: value.detach() for name, value in tiny_model().named_parameters()}

    assert merged(CONFIG, weights) == (CONFIG, weights)


@pytest.mark.parametrize(
    ("layer", "dimensions", "second_is_partial"),
    [
        ("3.attention.query_key_value", (None, 0), False),
        ("3.feed_forward.up", (None, 0), False),
        ("3.attention.output", (1, None), True),
        ("3.feed_forward.down", (1, None), True),
    ],
)
def test_an_adapter_is_split_as_its_layer(
    layer: str, dimensions: tuple[int | None, int | None], second_is_partial: bool
) -> None:
    first, second = adapter_names(layer)

    assert (split_dimension(first), split_dimension(second)) == dimensions
    assert has_partial_gradient(second, sequence_parallel=False) == second_is_partial
    assert not has_partial_gradient(first, sequence_parallel=False)
    # With sequence parallelism a matrix that is not split sees this rank's tokens only.
    assert has_partial_gradient(first, sequence_parallel=True) == (dimensions[0] is None)
    assert takes_weight_decay(first)
    assert not is_inner_matrix(first, replace(CONFIG, num_layers=4))  # too narrow for fp8
