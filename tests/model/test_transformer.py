"""Dependencies of each target's logits, and the size of the model."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.model.attention import num_visible_pairs
from ernie_vilg.model.attention_mask import pattern_of_block
from ernie_vilg.model.flops import (
    layer_flops,
    training_flops_per_pair,
    training_flops_per_token,
)
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.transformer import build_transformer, num_parameters
from ernie_vilg.vocabulary import END_OF_TEXT_ID, PADDING_ID
from tests.model.tiny import CONFIG, DECODER, tiny_config, tiny_model, tiny_pairs


def changed_slots(before: Tensor, after: Tensor) -> list[bool]:
    """Return for each slot whether the first pair's logits differ."""
    return (before[0] - after[0]).abs().amax(dim=-1).gt(0).tolist()


@pytest.mark.parametrize("slot", range(4))
def test_a_code_changes_no_logit_up_to_its_own_slot(slot: int) -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    other = codes.clone()
    other[0, slot] = (other[0, slot] + 1) % CONFIG.codebook_size

    changed = changed_slots(model((text, codes))[0], model((text, other))[0])

    assert changed == [index > slot for index in range(4)]


@pytest.mark.parametrize("slot", range(5))
def test_a_piece_changes_no_text_logit_up_to_its_own_slot(slot: int) -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    other = text.clone()
    other[0, slot] = 20

    changed = changed_slots(model((text, codes))[1], model((other, codes))[1])

    assert changed == [index > slot for index in range(5)]


@pytest.mark.parametrize("slot", range(5))
def test_every_text_slot_padding_included_reaches_every_code(slot: int) -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    other = text.clone()
    other[0, slot] = 20

    assert all(changed_slots(model((text, codes))[0], model((other, codes))[0]))


@pytest.mark.parametrize("slot", range(4))
def test_every_code_reaches_every_piece(slot: int) -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    other = codes.clone()
    other[0, slot] = (other[0, slot] + 1) % CONFIG.codebook_size

    assert all(changed_slots(model((text, codes))[1], model((text, other))[1]))


def test_pairs_of_a_batch_do_not_mix() -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()

    alone = model((text[:1], codes[:1]))
    together = model((text, codes))

    for one, many in zip(alone[:2], together[:2], strict=True):
        torch.testing.assert_close(one[0], many[0])


def test_padding_has_an_embedding_per_slot() -> None:
    embedding = tiny_model()[0]
    text = torch.tensor([[7, END_OF_TEXT_ID, PADDING_ID, PADDING_ID, PADDING_ID]])

    source = embedding.text_source(text, embedding.text_embedding(text))[0]

    expected = embedding.text_padding[3] + embedding.text_position[3] + embedding.segment[0, 0]
    torch.testing.assert_close(source[3], expected)


def test_a_repeated_caption_has_the_states_of_the_first_copy() -> None:
    config = tiny_config(text_padding="repeated")
    model, (text, codes) = tiny_model(config), tiny_pairs(config)
    embedding = model[0]
    text[0] = torch.tensor([7, END_OF_TEXT_ID, PADDING_ID, PADDING_ID, PADDING_ID])
    text[1] = PADDING_ID  # an empty caption

    source = embedding.text_source(text, embedding.text_embedding(text))
    states = model[:2]((text, codes))[0]  # text to image, after the first block

    assert source[0].equal(source[0, [0, 1, 0, 1, 0]])
    torch.testing.assert_close(states[0, :5], states[0, [0, 1, 0, 1, 0]])
    empty = embedding.text_padding + embedding.text_position + embedding.segment[0, 0]
    assert source[1].equal(empty)


def test_segments_start_alike_if_asked_to() -> None:
    config = tiny_config(segment_std=0.0)
    model = build_transformer(config)
    initialize(model.named_parameters(), config, seed=0)

    assert model[0].segment.count_nonzero() == 0
    assert model[0].text_position.count_nonzero() > 0


def test_the_papers_ten_billion_are_counted() -> None:
    config = ModelConfig(
        hidden_size=4096,
        num_layers=48,
        num_heads=64,
        text_vocab_size=32768,
        text_length=64,
        codebook_size=8192,
        image_grid_size=32,
    )

    # 12 * 48 * 4096^2 in the blocks, and two embeddings and heads.
    assert num_parameters(config) == pytest.approx(12 * 48 * 4096**2 + 2 * 40960 * 4096, rel=0.01)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="tiny"),
        pytest.param(
            tiny_config(hidden_size=24, num_layers=3, num_heads=3, ffn_multiplier=2),
            id="all sizes different",
        ),
        pytest.param(
            tiny_config(reconstructor=ReconstructorConfig(kind="end_to_end", decoder=DECODER)),
            id="with a reconstructor",
        ),
    ],
)
def test_flops_agree_with_torchs_own_counter(config: ModelConfig) -> None:
    model, pair = tiny_model(config), tiny_pairs(config)
    with FlopCounterMode(display=False) as counter:
        model(pair)

    assert counter.get_total_flops() == len(pair[0]) * sum(layer_flops(config))


def test_sparse_attention_counts_what_its_masks_show() -> None:
    full = tiny_config(image_grid_size=8)
    sparse = tiny_config(image_grid_size=8, attention="sparse", convolution_size=3)

    def attention_flops(config: ModelConfig) -> int:
        pairs = [
            num_visible_pairs(config, pattern_of_block(config, index))
            for index in range(1, config.num_layers + 1)
        ]
        return 4 * config.hidden_size * sum(pairs)

    difference = sum(layer_flops(full)) - sum(layer_flops(sparse))
    assert difference == attention_flops(full) - attention_flops(sparse) > 0


def test_a_training_step_counts_three_forward_passes() -> None:
    config = tiny_config()  # 9 slots of 16 in both directions, 2 blocks, 4 codes and 5 pieces

    # Products: 18 slots, 2 operations for each of (3 + 1 + 4 + 4) * 16^2 weights. Scores and sums:
    # 4 * 16 for each of 2 * 9^2 visible pairs. Head: 2 * 16 * (4 * 20 codes + 5 * 24 pieces).
    forward = 2 * (18 * 2 * 3072 + 4 * 16 * 162) + 6400

    assert forward == 248_320
    assert training_flops_per_pair(config) == 744_960
    assert training_flops_per_token(config) == 41_386  # over 18 slots, rounded down
