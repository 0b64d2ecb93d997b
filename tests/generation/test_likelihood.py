"""Likelihoods are the training loss's own terms, and the decoder's own probabilities."""

import math
from itertools import count

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig, ReconstructorConfig
from ernie_vilg.generation.decode import StoppedError, TokenGenerator
from ernie_vilg.generation.likelihood import Likelihood
from ernie_vilg.generation.randomness import uniforms
from ernie_vilg.generation.sampling import Sampling
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Objective
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, END_OF_TEXT_ID, PADDING_ID, text_slots
from tests.model.tiny import CONFIG, DECODER, tiny_config, tiny_model, tiny_pairs

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order
TO_IMAGE, TO_TEXT = Direction

SHAPES = {
    "full": CONFIG,
    "sparse": tiny_config(
        attention="sparse", num_layers=4, image_grid_size=4, convolution_size=3, qk_norm=True
    ),
    "one more image slot": tiny_config(
        reconstructor=ReconstructorConfig(
            kind="end_to_end", hidden_position="input", decoder=DECODER
        )
    ),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_means_over_targets_are_the_training_losses(config: ModelConfig) -> None:
    model, (text, codes) = tiny_model(config), tiny_pairs(config)
    likelihood = Likelihood(model, config)

    of_images = likelihood.of_pairs(TO_IMAGE, text, codes)
    of_texts = likelihood.of_pairs(TO_TEXT, text, codes)

    num_pieces = (text != PADDING_ID).sum()
    pixels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with torch.no_grad():
        losses = Objective(ObjectiveConfig(), SINGLE_DEVICE)(
            model((text, codes)), (text, codes, num_pieces[None].float(), pixels)
        )
    assert (of_images.dtype, of_texts.dtype) == (torch.float64, torch.float64)
    text_to_image = -of_images.sum() / codes.numel()
    assert text_to_image.item() == pytest.approx(losses.text_to_image.item(), rel=1e-5)
    image_to_text = -of_texts.sum() / num_pieces
    assert image_to_text.item() == pytest.approx(losses.image_to_text.item(), rel=1e-5)


def test_a_models_known_probabilities_are_summed_by_hand() -> None:
    """Biases alone decide: code 4 has probability 1/2, piece 7 1/4, the end of text 1/8."""
    model, (text, codes) = tiny_model(), tiny_pairs()
    head = model[-1]
    with torch.no_grad():
        for layer, known in ((head.image_logits, {4: 2}), (head.text_logits, {7: 4, 3: 8})):
            layer.weight.zero_()
            rest = 1 - sum(1 / inverse for inverse in known.values())
            layer.bias.fill_(math.log(rest / (len(layer.bias) - len(known))))
            for token, inverse in known.items():
                layer.bias[token] = -math.log(inverse)
    likelihood = Likelihood(model, CONFIG)

    # The second picture is four times code 4; the first text is piece 7 and its end.
    assert likelihood.of_pairs(TO_IMAGE, text, codes)[1].item() == pytest.approx(-4 * math.log(2))
    assert likelihood.of_pairs(TO_TEXT, text, codes)[0].item() == pytest.approx(-math.log(4 * 8))


def test_every_target_has_the_log_probability_of_a_full_forward_pass() -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    likelihood = Likelihood(model, CONFIG)

    with torch.no_grad():
        output = model((text, codes))
    of_codes = output.image_logits.log_softmax(-1).gather(2, codes[..., None])[..., 0]
    of_pieces = output.text_logits.log_softmax(-1).gather(2, text[..., None])[..., 0]
    torch.testing.assert_close(likelihood.of_targets(TO_IMAGE, text, codes), of_codes, **TOLERANCE)
    torch.testing.assert_close(
        likelihood.of_targets(TO_TEXT, text, codes),
        torch.where(text == PADDING_ID, 0.0, of_pieces),
        **TOLERANCE,
    )


def test_an_answer_alone_is_judged_given_its_question() -> None:
    model, (_, codes) = tiny_model(), tiny_pairs()
    likelihood = Likelihood(model, CONFIG)
    text = torch.tensor([[9, BEGIN_OF_TEXT_ID, 7, END_OF_TEXT_ID, PADDING_ID]] * 2)
    text[1, 0] = 8  # another question

    found = likelihood.of_targets(TO_TEXT, text, codes[[0, 0]])

    with torch.no_grad():
        logits = model((text, codes[[0, 0]])).text_logits
    of_pieces = logits.log_softmax(-1).gather(2, text[..., None])[..., 0]
    is_answer = torch.tensor([False, False, True, True, False])
    torch.testing.assert_close(found, torch.where(is_answer, of_pieces, 0.0), **TOLERANCE)
    assert abs(found[0] - found[1]).max() > 1e-3


def test_a_drawing_has_the_likelihood_that_its_steps_summed_up() -> None:
    model, (text, _) = tiny_model(), tiny_pairs()
    numbers = uniforms(range(3), [b""] * 3, 16)

    drawn = TokenGenerator(model, CONFIG).draw(text, Sampling(temperature=1.0), numbers)

    likelihoods = Likelihood(model, CONFIG).of_pairs(TO_IMAGE, text, drawn.codes)
    torch.testing.assert_close(likelihoods.float(), drawn.log_probabilities, **TOLERANCE)


def test_a_written_caption_has_the_likelihood_that_its_steps_summed_up() -> None:
    model, (_, codes) = tiny_model(), tiny_pairs()
    with torch.no_grad():
        model[-1].text_logits.bias[:END_OF_TEXT_ID] -= 100.0  # ids that are never written
    numbers = uniforms(range(3), [b""] * 3, 16)

    text, steps = TokenGenerator(model, CONFIG).caption(codes, Sampling(temperature=1.0), numbers)

    likelihoods = Likelihood(model, CONFIG).of_pairs(TO_TEXT, text, codes)
    torch.testing.assert_close(likelihoods.float(), steps, **TOLERANCE)


@pytest.mark.parametrize("direction", Direction)
def test_a_pair_has_the_same_bits_alone_in_any_order_and_in_the_matrix(
    direction: Direction,
) -> None:
    text, codes = many()
    likelihood = Likelihood(tiny_model(), CONFIG)
    pairs = torch.tensor([[18, 2], [0, 20], [18, 0], [18, 2], [3, 3]])

    matrix = likelihood.matrix(direction, text, codes)

    assert matrix.shape == (19, 21)
    chosen = likelihood.of_pairs(direction, text, codes, pairs)
    assert chosen.equal(matrix[pairs[:, 0], pairs[:, 1]])
    for (caption, picture), value in zip(pairs.tolist(), chosen, strict=True):
        alone = likelihood.of_pairs(direction, text[caption][None], codes[picture][None])
        assert alone.equal(value[None])


def many() -> tuple[Tensor, Tensor]:
    """Return 19 texts and 21 pictures: more than a batch, and no multiple of it."""
    generator = torch.Generator().manual_seed(3)
    lengths = [1 + index % CONFIG.text_length for index in range(19)]
    ids = torch.randint(4, CONFIG.text_vocab_size, (19, CONFIG.text_length), generator=generator)
    text = [text_slots(row[:size].tolist(), 5) for row, size in zip(ids, lengths, strict=True)]
    codes = torch.randint(CONFIG.codebook_size, (21, 4), generator=generator)
    return torch.tensor(text), codes


def test_the_matrix_is_a_full_forward_pass_of_every_text_with_every_picture() -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    likelihood = Likelihood(model, CONFIG)
    texts, pictures = text.repeat_interleave(3, dim=0), codes.repeat(3, 1)

    with torch.no_grad():
        output = model((texts, pictures))
    of_codes = output.image_logits.log_softmax(-1).gather(2, pictures[..., None])[..., 0]
    of_pieces = output.text_logits.log_softmax(-1).gather(2, texts[..., None])[..., 0]
    of_pieces = torch.where(texts == PADDING_ID, 0.0, of_pieces)
    for direction, expected in zip(Direction, (of_codes, of_pieces), strict=True):
        matrix = likelihood.matrix(direction, text, codes).flatten().float()
        torch.testing.assert_close(matrix, expected.sum(dim=1), **TOLERANCE)


def test_each_source_goes_through_the_model_once() -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    read = []
    model[1].attention.query_key_value.register_forward_hook(
        lambda _, inputs, output: read.append(inputs[0].shape[2])
    )
    pairs = torch.tensor([[index % 3, 1] for index in range(40)])

    Likelihood(model, CONFIG).of_pairs(TO_TEXT, text, codes, pairs)

    # One picture's four slots once, then three batches of texts of five slots.
    assert read == [4, 5, 5, 5]


def test_work_ends_at_the_next_batch_when_asked_to() -> None:
    asked = count(1)
    text, codes = many()

    with pytest.raises(StoppedError):
        Likelihood(tiny_model(), CONFIG).matrix(
            TO_TEXT, text, codes, should_stop=lambda: next(asked) == 3
        )

    assert next(asked) == 4
