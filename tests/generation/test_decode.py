"""Generation token by token with the cache equals one full forward pass."""

import pytest
import torch

from ernie_vilg.config.model import ReconstructorConfig
from ernie_vilg.generation.decode import StoppedError, TokenGenerator
from ernie_vilg.generation.randomness import uniforms
from ernie_vilg.generation.sampling import Sampling
from ernie_vilg.vocabulary import END_OF_TEXT_ID, NUM_SPECIAL_IDS, PADDING_ID
from tests.model.tiny import CONFIG, DECODER, tiny_config, tiny_model, tiny_pairs

GREEDY = Sampling()
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order

BFLOAT16_TOLERANCE = {"rtol": 2.0**-6, "atol": 2.0**-5}  # a few roundings to 2 ** -8, of up to 8


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    return uniforms(range(seed, seed + count), [b""] * count, 16)


def test_drawn_codes_are_what_a_full_forward_pass_predicts() -> None:
    model, (text, _) = tiny_model(), tiny_pairs()

    codes, log_probabilities, _ = TokenGenerator(model, CONFIG).draw(text, GREEDY, numbers(3))

    with torch.no_grad():
        image_logits = model((text, codes)).image_logits
    assert image_logits.argmax(dim=-1).equal(codes)
    expected = image_logits.log_softmax(dim=-1).amax(dim=-1).sum(dim=1)
    torch.testing.assert_close(log_probabilities, expected, **TOLERANCE)


def test_sampled_codes_have_the_log_probability_of_a_full_forward_pass() -> None:
    model, (text, _) = tiny_model(), tiny_pairs()

    codes, log_probabilities, _ = TokenGenerator(model, CONFIG).draw(
        text, Sampling(temperature=1.5), numbers(3)
    )

    with torch.no_grad():
        image_logits = model((text, codes)).image_logits
    per_code = image_logits.log_softmax(dim=-1).gather(2, codes[..., None])[..., 0]
    torch.testing.assert_close(log_probabilities, per_code.sum(dim=1), **TOLERANCE)


def test_a_bfloat16_model_draws_what_its_own_forward_pass_predicts() -> None:
    model, (text, _) = tiny_model().bfloat16(), tiny_pairs()

    codes, log_probabilities, _ = TokenGenerator(model, CONFIG).draw(text, GREEDY, numbers(3))

    with torch.no_grad():
        image_logits = model((text, codes)).image_logits
    assert image_logits.dtype == torch.bfloat16
    predicted = image_logits.float().log_softmax(dim=-1)
    drawn = predicted.gather(2, codes[..., None])[..., 0]
    # Two codes whose logits are equal but for rounding to 8 bits of mantissa may change places.
    torch.testing.assert_close(drawn, predicted.amax(dim=-1), **BFLOAT16_TOLERANCE)
    torch.testing.assert_close(log_probabilities, drawn.sum(dim=1), **BFLOAT16_TOLERANCE)


def test_written_text_is_what_a_full_forward_pass_predicts() -> None:
    model, (_, codes) = tiny_model(), tiny_pairs()

    text, log_probabilities = TokenGenerator(model, CONFIG).caption(codes, GREEDY, numbers(3))

    with torch.no_grad():
        text_logits = model((text, codes)).text_logits
    text_logits[..., [0, 1, 2]] = float("-inf")
    is_target = text != PADDING_ID
    assert text_logits.argmax(dim=-1)[is_target].equal(text[is_target])
    best = text_logits.log_softmax(dim=-1).amax(dim=-1)
    expected = torch.where(is_target, best, 0.0).sum(dim=1)
    torch.testing.assert_close(log_probabilities, expected, **TOLERANCE)


def test_nothing_follows_the_end_of_text() -> None:
    model, (_, codes) = tiny_model(), tiny_pairs()
    with torch.no_grad():
        model[-1].text_logits.bias[END_OF_TEXT_ID] += 100.0

    text, _ = TokenGenerator(model, CONFIG).caption(codes, GREEDY, numbers(3))

    assert text.tolist() == [[END_OF_TEXT_ID] + [PADDING_ID] * 4] * 3


def test_special_ids_are_never_written() -> None:
    model, (_, codes) = tiny_model(), tiny_pairs()
    with torch.no_grad():
        model[-1].text_logits.bias[:NUM_SPECIAL_IDS] += 100.0
        model[-1].text_logits.bias[END_OF_TEXT_ID] -= 200.0

    text, _ = TokenGenerator(model, CONFIG).caption(codes, GREEDY, numbers(3))

    assert (text >= NUM_SPECIAL_IDS).all()


def test_ids_that_the_text_tokenizer_lacks_are_never_written() -> None:
    model, (_, codes) = tiny_model(), tiny_pairs()
    with torch.no_grad():
        model[-1].text_logits.bias[20:] += 100.0

    text, _ = TokenGenerator(model, CONFIG, num_text_ids=20).caption(codes, GREEDY, numbers(3))

    assert (text < 20).all()


def test_a_draw_does_not_depend_on_its_batch() -> None:
    model, (text, _) = tiny_model(), tiny_pairs()
    sampling = Sampling(temperature=1.0, top_k=3)
    decoder = TokenGenerator(model, CONFIG)

    together = decoder.draw(text, sampling, numbers(3)).codes
    alone = decoder.draw(text[2:], sampling, numbers(1, seed=2)).codes

    assert together[2].equal(alone[0])


@pytest.mark.parametrize("text_padding", ["learned", "repeated"])
@pytest.mark.parametrize("row_pattern", ["raster", "block"])
def test_sparse_attention_decodes_what_a_full_forward_pass_predicts(
    row_pattern: str, text_padding: str
) -> None:
    config = tiny_config(
        attention="sparse",
        row_pattern=row_pattern,
        num_layers=4,
        image_grid_size=4,
        convolution_size=3,
        qk_norm=True,
        text_padding=text_padding,
    )
    model, (text, _) = tiny_model(config), tiny_pairs(config)

    codes, log_probabilities, _ = TokenGenerator(model, config).draw(text, GREEDY, numbers(3))

    with torch.no_grad():
        image_logits = model((text, codes)).image_logits
    expected = image_logits.log_softmax(dim=-1).amax(dim=-1).sum(dim=1)
    torch.testing.assert_close(log_probabilities, expected, **TOLERANCE)


@pytest.mark.parametrize("hidden_position", ["input", "prediction"])
def test_the_reconstructor_draws_what_a_full_forward_pass_draws(hidden_position: str) -> None:
    reconstructor = ReconstructorConfig(
        kind="end_to_end", hidden_position=hidden_position, decoder=DECODER
    )
    config = tiny_config(reconstructor=reconstructor)
    model, (text, _) = tiny_model(config), tiny_pairs(config)

    codes, _, pixels = TokenGenerator(model, config).draw(text, GREEDY, numbers(3))

    with torch.no_grad():
        expected = model((text, codes)).pixels.clamp(-1, 1)
    torch.testing.assert_close(pixels, expected, **TOLERANCE)


@pytest.mark.parametrize("work", ["draw", "caption"])
def test_decoding_ends_at_the_next_slot_when_asked_to(work: str) -> None:
    text, codes = tiny_pairs()
    asked = []

    def stop_at_the_third_slot() -> bool:
        asked.append(True)
        return len(asked) == 3

    decoder = TokenGenerator(tiny_model(), CONFIG)
    function, source = {"draw": (decoder.draw, text), "caption": (decoder.caption, codes)}[work]
    with pytest.raises(StoppedError):
        function(source, Sampling(), numbers(3), should_stop=stop_at_the_third_slot)

    assert len(asked) == 3
