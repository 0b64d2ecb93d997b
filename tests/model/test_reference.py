"""The model equals a second, deliberately naive implementation, written from the equations.

The reference shares no code with the model but its weights: one sequence, one slot, one head
at a time, in float64.
"""

import math

import pytest
import torch
from torch import Tensor

from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, PADDING_ID
from tests.model.tiny import CONFIG, tiny_model, tiny_pairs

Weights = dict[str, Tensor]
TEXT, IMAGE = CONFIG.text_length, CONFIG.num_image_tokens


def reference_logits(
    weights: Weights, direction: Direction, text: list[int], codes: list[int]
) -> Tensor:
    """Return the target slots' logits of one sequence, [slots, vocab]."""
    states = [embed_text(weights, direction, slot, text) for slot in range(TEXT)] + [
        embed_image(weights, direction, slot, codes) for slot in range(IMAGE)
    ]
    for layer in range(1, CONFIG.num_layers + 1):
        states = block(weights, f"{layer}.", direction, states)
    head = f"{CONFIG.num_layers + 1}."
    is_drawing = direction is Direction.TEXT_TO_IMAGE
    targets = states[TEXT:] if is_drawing else states[:TEXT]
    name = head + ("image_logits" if is_drawing else "text_logits")
    return torch.stack(
        [linear(weights, name, norm(weights, head + "norm", state)) for state in targets]
    )


def embed_text(weights: Weights, direction: Direction, slot: int, text: list[int]) -> Tensor:
    table, position = weights["0.text_embedding.weight"], weights["0.text_position"][slot]
    if direction is Direction.IMAGE_TO_TEXT:
        before = BEGIN_OF_TEXT_ID if slot == 0 else text[slot - 1]
        return table[before] + position + weights["0.segment"][1, 0]
    token = weights["0.text_padding"][slot] if text[slot] == PADDING_ID else table[text[slot]]
    return token + position + weights["0.segment"][0, 0]


def embed_image(weights: Weights, direction: Direction, slot: int, codes: list[int]) -> Tensor:
    row, column = divmod(slot, CONFIG.image_grid_size)
    position = weights["0.image_row"][row] + weights["0.image_column"][column]
    table = weights["0.image_embedding.weight"]
    if direction is Direction.IMAGE_TO_TEXT:
        return table[codes[slot]] + position + weights["0.segment"][1, 1]
    token = weights["0.begin_of_image"] if slot == 0 else table[codes[slot - 1]]
    return token + position + weights["0.segment"][0, 1]


def is_visible(direction: Direction, query: int, key: int) -> bool:
    def is_source(slot: int) -> bool:
        return (slot < TEXT) == (direction is Direction.TEXT_TO_IMAGE)

    return is_source(key) or (not is_source(query) and key <= query)


def block(weights: Weights, name: str, direction: Direction, states: list[Tensor]) -> list[Tensor]:
    normed = [norm(weights, name + "attention_norm", state) for state in states]
    split = [linear(weights, name + "attention.query_key_value", state) for state in normed]
    attended = []
    for query_slot, state in enumerate(states):
        heads = [
            attend_one_head(split, head, direction, query_slot) for head in range(CONFIG.num_heads)
        ]
        attended.append(state + linear(weights, name + "attention.output", torch.cat(heads)))
    return [state + feed_forward(weights, name, state) for state in attended]


def attend_one_head(
    split: list[Tensor], head: int, direction: Direction, query_slot: int
) -> Tensor:
    width = CONFIG.head_dim
    start = head * 3 * width
    query = split[query_slot][start : start + width]
    visible = [key for key in range(TEXT + IMAGE) if is_visible(direction, query_slot, key)]
    keys = [split[key][start + width : start + 2 * width] for key in visible]
    values = [split[key][start + 2 * width : start + 3 * width] for key in visible]
    scores = [float(query @ key) / math.sqrt(width) for key in keys]
    exponentials = [math.exp(score) for score in scores]
    total = torch.zeros(width, dtype=torch.float64)
    for exponential, value in zip(exponentials, values, strict=True):
        total += exponential / sum(exponentials) * value
    return total


def feed_forward(weights: Weights, name: str, state: Tensor) -> Tensor:
    inner = linear(
        weights, name + "feed_forward.up", norm(weights, name + "feed_forward_norm", state)
    )
    active = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    return linear(weights, name + "feed_forward.down", active)


def norm(weights: Weights, name: str, state: Tensor) -> Tensor:
    centred = state - state.mean()
    scaled = centred / torch.sqrt((centred**2).mean() + CONFIG.layer_norm_epsilon)
    return scaled * weights[name + ".weight"] + weights[name + ".bias"]


def linear(weights: Weights, name: str, state: Tensor) -> Tensor:
    return weights[name + ".weight"] @ state + weights[name + ".bias"]


@pytest.mark.parametrize("direction", Direction)
def test_logits_equal_the_naive_implementation(direction: Direction) -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()
    weights = {name: value.detach().double() for name, value in model.named_parameters()}

    logits = model((text, codes))[direction]

    for row in range(len(text)):
        expected = reference_logits(weights, direction, text[row].tolist(), codes[row].tolist())
        torch.testing.assert_close(logits[row].double(), expected, rtol=1e-5, atol=1e-5)
