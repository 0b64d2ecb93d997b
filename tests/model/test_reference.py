"""The model equals a second, deliberately naive implementation, written from the equations.

The reference shares no code with the model but its weights: one sequence, one slot, one head
at a time, in float64.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, PADDING_ID
from tests.model.tiny import DECODER, tiny_config, tiny_model, tiny_pairs

TO_IMAGE, TO_TEXT = "text-to-image", "image-to-text"


class Reference:
    """The forward pass of one pair."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor]) -> None:
        self.config = config
        self.weights = weights
        self.head = f"{config.num_layers + 1}."

    def hidden_states(self, direction: str, text: list[int], codes: list[int]) -> list[Tensor]:
        """Return the last layer's states of all slots, normed."""
        states = [self.text_slot(direction, slot, text) for slot in range(len(text))]
        for slot in range(self.config.num_image_slots):
            states.append(self.image_slot(direction, slot, codes))
        for layer in range(1, self.config.num_layers + 1):
            states = self.block(layer, direction, states)
        return [self.norm(self.head + "norm", state) for state in states]

    def text_slot(self, direction: str, slot: int, text: list[int]) -> Tensor:
        table = self.weights["0.text_embedding.weight"]
        position = self.weights["0.text_position"][slot]
        if direction == TO_TEXT:
            before = BEGIN_OF_TEXT_ID if slot == 0 else text[slot - 1]
            return table[before] + position + self.weights["0.segment"][1, 0]
        if self.config.text_padding == "repeated":
            length = sum(index != PADDING_ID for index in text)
            slot = slot % length if length else slot
            position = self.weights["0.text_position"][slot]
        padding = self.weights["0.text_padding"][slot]
        token = padding if text[slot] == PADDING_ID else table[text[slot]]
        return token + position + self.weights["0.segment"][0, 0]

    def image_slot(self, direction: str, slot: int, codes: list[int]) -> Tensor:
        table = self.weights["0.image_embedding.weight"]
        if slot == len(codes):
            position = self.weights["0.end_of_image_position"]
        else:
            row, column = divmod(slot, self.config.image_grid_size)
            position = self.weights["0.image_row"][row] + self.weights["0.image_column"][column]
        if direction == TO_TEXT:
            is_end = slot == len(codes)
            token = self.weights["0.end_of_image"] if is_end else table[codes[slot]]
            return token + position + self.weights["0.segment"][1, 1]
        token = self.weights["0.begin_of_image"] if slot == 0 else table[codes[slot - 1]]
        return token + position + self.weights["0.segment"][0, 1]

    def is_visible(self, layer: int, direction: str, query: int, key: int) -> bool:
        """Paper, section 3.1.2: text sees by direction, image slots by the layer's pattern."""
        text = self.config.text_length
        if direction == TO_IMAGE:
            if key < text:
                return True  # text is visible to all
            if query < text or key > query:
                return False
        else:
            if query < text:
                return key >= text or key <= query
            if key < text:
                return False
        return self.is_in_pattern(layer, direction, query - text, key - text)

    def is_in_pattern(self, layer: int, direction: str, query: int, key: int) -> bool:
        config, grid = self.config, self.config.image_grid_size
        if config.attention == "full":
            return True
        query_row, query_column = divmod(query, grid)
        key_row, key_column = divmod(key, grid)
        if layer == config.num_layers:
            reach = (config.convolution_size - 1) / 2
            return abs(query_row - key_row) <= reach and abs(query_column - key_column) <= reach
        if layer % 4 == 2:
            return query_column == key_column
        if direction == TO_IMAGE and config.row_pattern == "raster":
            return key in range(query - grid, query + 1)
        return query_row == key_row

    def block(self, layer: int, direction: str, states: list[Tensor]) -> list[Tensor]:
        name = f"{layer}.attention"
        split = [
            self.linear(f"{name}.query_key_value", self.norm(f"{name}_branch.norm", state))
            for state in states
        ]
        attended = []
        for query, state in enumerate(states):
            visible = [
                key for key in range(len(states)) if self.is_visible(layer, direction, query, key)
            ]
            heads = [
                self.one_head(name, split, head, query, visible)
                for head in range(self.config.num_heads)
            ]
            output = self.linear(f"{name}.output", torch.cat(heads))
            attended.append(state + self.leave_branch(f"{name}_branch", output))
        return [state + self.feed_forward(f"{layer}.feed_forward", state) for state in attended]

    def one_head(
        self, name: str, split: list[Tensor], head: int, query_slot: int, visible: list[int]
    ) -> Tensor:
        width = self.config.head_dim
        start = head * 3 * width

        def part(slot: int, index: int) -> Tensor:
            return split[slot][start + index * width :][:width]

        query = self.norm(f"{name}.query_norm", part(query_slot, 0))
        keys = [self.norm(f"{name}.key_norm", part(slot, 1)) for slot in visible]
        values = [part(slot, 2) for slot in visible]
        exponentials = [math.exp(float(query @ key) / math.sqrt(width)) for key in keys]
        total = torch.zeros(width, dtype=torch.float64)
        for exponential, value in zip(exponentials, values, strict=True):
            total += exponential / sum(exponentials) * value
        return total

    def feed_forward(self, name: str, state: Tensor) -> Tensor:
        inner = self.linear(f"{name}.up", self.norm(f"{name}_branch.norm", state))
        return self.leave_branch(f"{name}_branch", self.linear(f"{name}.down", gelu(inner)))

    def leave_branch(self, name: str, output: Tensor) -> Tensor:
        output = self.norm(f"{name}.output_norm", output)
        if self.config.residual_scaling == "branch":
            output = output / math.sqrt(2 * self.config.num_layers)
        return output

    def norm(self, name: str, state: Tensor) -> Tensor:
        """Layer norm; the identity where the model has none of that name."""
        if f"{name}.weight" not in self.weights:
            assert name.endswith(("query_norm", "key_norm", "output_norm"))
            return state
        centred = state - state.mean()
        scaled = centred / torch.sqrt((centred**2).mean() + self.config.layer_norm_epsilon)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name: str, state: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return weight @ state + self.weights[f"{name}.bias"]

    def logits(self, direction: str, text: list[int], codes: list[int]) -> Tensor:
        """Return the target slots' logits, [slots, vocab]."""
        states = self.hidden_states(direction, text, codes)
        if direction == TO_IMAGE:
            targets, name = states[len(text) :][: len(codes)], "image_logits"
        else:
            targets, name = states[: len(text)], "text_logits"
        return torch.stack([self.linear(self.head + name, state) for state in targets])

    def pixels(self, text: list[int], codes: list[int]) -> Tensor:
        """Return the picture of the hidden states, [3, height, width] (section 3.1.3)."""
        states = self.hidden_states(TO_IMAGE, text, codes)[len(text) :]
        # The slot that predicts code k is slot k; the slot where it is the input comes next.
        shift = {"prediction": 0, "input": 1}[self.config.reconstructor.hidden_position]
        name = self.head + "reconstructor."
        grid = self.config.image_grid_size
        vectors = torch.empty(1, DECODER.embedding_size, grid, grid, dtype=torch.float64)
        for index in range(len(codes)):
            inner = gelu(self.linear(name + "up", states[index + shift]))
            vectors[0, :, index // grid, index % grid] = self.linear(name + "down", inner)
        return self.decode(name + "decoder.", vectors)[0]

    def decode(self, name: str, grid: Tensor) -> Tensor:
        """Run the tiny decoder: convolution, two residual blocks, two more layers."""

        def convolve(layer: str, inputs: Tensor) -> Tensor:
            weight, bias = (
                self.weights[name + layer + ".weight"],
                self.weights[name + layer + ".bias"],
            )
            return F.conv2d(inputs, weight, bias, padding="same")

        def norm_silu(layer: str, inputs: Tensor) -> Tensor:
            rows = inputs.permute(0, 2, 3, 1)
            mean = rows.mean(dim=-1, keepdim=True)
            variance = ((rows - mean) ** 2).mean(dim=-1, keepdim=True)
            scaled = (rows - mean) / torch.sqrt(variance + 1e-5)
            normed = scaled * self.weights[name + layer + ".weight"]
            normed = (normed + self.weights[name + layer + ".bias"]).permute(0, 3, 1, 2)
            return normed * torch.sigmoid(normed)

        state = convolve("input", grid)
        for block in ("middle.0", "middle.1", "levels.0.0"):
            inner = norm_silu(f"{block}.first_normalization", state)
            inner = convolve(f"{block}.first_convolution", inner)
            inner = norm_silu(f"{block}.second_normalization", inner)
            state = state + convolve(f"{block}.second_convolution", inner)
        folded = convolve("output", norm_silu("normalization", state))
        size = DECODER.patch_size
        picture = torch.empty(1, 3, *(size * side for side in folded.shape[2:]))
        for channel in range(3):
            for row in range(picture.shape[2]):
                for column in range(picture.shape[3]):
                    inside = (row % size) * size + column % size
                    picture[0, channel, row, column] = folded[
                        0, channel * size**2 + inside, row // size, column // size
                    ]
        return picture


def gelu(inner: Tensor) -> Tensor:
    return 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))


def sparse_config(**changes: object) -> ModelConfig:
    """Row, column, row, convolution, on a grid wide enough to tell them apart."""
    return tiny_config(
        **{
            "attention": "sparse",
            "num_layers": 4,
            "image_grid_size": 4,
            "convolution_size": 3,
            **changes,
        }
    )


CONFIGS = {
    "full": tiny_config(),
    "sparse": sparse_config(),
    "sparse, rows in blocks": sparse_config(row_pattern="block"),
    "QK-norm": tiny_config(qk_norm=True),
    "captions repeated": tiny_config(text_padding="repeated"),
    "sandwich norm": tiny_config(sandwich_norm=True),
    "PB-relax": tiny_config(pb_relax=32.0),
    "scaled branches": tiny_config(residual_scaling="branch"),
    "tied embeddings": tiny_config(tied_embeddings=True),
    "one slot more": tiny_config(
        reconstructor=ReconstructorConfig(kind="end_to_end", decoder=DECODER)
    ),
    "everything": sparse_config(
        image_grid_size=2,
        qk_norm=True,
        text_padding="repeated",
        sandwich_norm=True,
        pb_relax=8.0,
        residual_scaling="branch",
        tied_embeddings=True,
        reconstructor=ReconstructorConfig(kind="end_to_end", decoder=DECODER),
    ),
}


def reference_of(config: ModelConfig) -> tuple[Reference, torch.nn.Sequential]:
    model = tiny_model(config)
    weights = {name: value.double() for name, value in model.state_dict().items()}
    return Reference(config, weights), model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("direction", [TO_IMAGE, TO_TEXT])
def test_logits_equal_the_naive_implementation(direction: str, name: str) -> None:
    reference, model = reference_of(CONFIGS[name])
    text, codes = tiny_pairs(CONFIGS[name])

    output = model((text, codes))

    logits = output.image_logits if direction == TO_IMAGE else output.text_logits
    for row in range(len(text)):
        expected = reference.logits(direction, text[row].tolist(), codes[row].tolist())
        torch.testing.assert_close(logits[row].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden_position", ["input", "prediction"])
def test_pixels_equal_the_naive_implementation(hidden_position: str) -> None:
    reconstructor = ReconstructorConfig(
        kind="end_to_end", hidden_position=hidden_position, decoder=DECODER
    )
    config = tiny_config(reconstructor=reconstructor)
    reference, model = reference_of(config)
    text, codes = tiny_pairs(config)

    pixels = model((text, codes)).pixels

    for row in range(len(text)):
        expected = reference.pixels(text[row].tolist(), codes[row].tolist())
        torch.testing.assert_close(pixels[row], expected, rtol=1e-5, atol=1e-5)
