"""The model keeps the picture that it finds best in both directions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie_vilg.generation.choice import draw_chosen
from ernie_vilg.model.attention_mask import Direction


@dataclass
class Picture:
    prompt: str
    codes: Tensor
    log_probability: float


@dataclass
class Model:
    """A model of two codes per picture and three text slots, whose likelihoods are given."""

    of_codes: list[float]
    """Log-likelihood of each drawn picture's codes, nats."""
    of_text: list[float]
    """Log-likelihood of the prompt given each drawn picture, nats."""
    drawn_with: dict[str, Any] = field(default_factory=dict)

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[Picture]:
        self.drawn_with = settings
        repeated = [prompt for prompt in prompts for _ in range(settings["images_per_prompt"])]
        return [
            Picture(prompt, torch.full((1, 2), index), nats)
            for index, (prompt, nats) in enumerate(zip(repeated, self.of_codes, strict=True))
        ]

    def text_ids(self, prompts: Sequence[str]) -> Tensor:
        """Return a piece per letter, and padding."""
        return torch.tensor([[9] * len(prompt) + [0] * (3 - len(prompt)) for prompt in prompts])

    @property
    def likelihood(self) -> "Model":
        return self

    def of_pairs(self, direction: Direction, text: Tensor, codes: Tensor) -> Tensor:
        assert direction is Direction.IMAGE_TO_TEXT
        assert codes.tolist() == [[index, index] for index in range(len(text))]
        return torch.tensor(self.of_text, dtype=torch.float64)


def chosen(model: Any, prompts: Sequence[str]) -> list[int]:
    drawn = list(draw_chosen(model, prompts, drawings=2, temperature=0.3, seed=5, batch_size=7))
    assert [picture.prompt for picture in drawn] == list(prompts)
    return [int(picture.codes[0, 0]) for picture in drawn]


@pytest.mark.parametrize(
    ("of_codes", "of_text", "expected"),
    [
        ([-2.0, -2.0, -2.0, -2.0], [-1.0, -3.0, -3.0, -1.0], [0, 3]),  # the text decides
        ([-6.0, -2.0, -2.0, -6.0], [-1.0, -1.0, -1.0, -1.0], [1, 2]),  # the codes decide
        # Means: a piece of "abc" counts a third, a piece of "a" whole, a code a half.
        ([-2.0, -4.0, -2.0, -4.0], [-6.0, -2.0, -2.0, -0.5], [1, 3]),
        ([-2.0, -5.0, -2.0, -6.0], [-6.0, -2.0, -2.0, -0.5], [0, 2]),
    ],
)
def test_sum_of_both_means_decides(
    of_codes: list[float], of_text: list[float], expected: list[int]
) -> None:
    assert chosen(Model(of_codes, of_text), ["abc", "a"]) == expected


def test_settings_of_the_drawing_arrive() -> None:
    model = Model([-1.0, -1.0], [-1.0, -1.0])

    chosen(model, ["ab"])

    assert model.drawn_with == {
        "images_per_prompt": 2, "temperature": 0.3, "seed": 5, "batch_size": 7,
    }  # fmt: skip
