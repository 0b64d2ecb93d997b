"""Ranks of true candidates, by hand; scores are the model's own likelihoods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.retrieval import Retrieval, figures_of, ranks_of_truth, retrieve
from ernie_vilg.generation.likelihood import Likelihood
from ernie_vilg.model.attention_mask import Direction
from tests.evaluation.trained import trained_model
from tests.model.tiny import CONFIG, tiny_model, tiny_pairs

TO_IMAGE, TO_TEXT = Direction


def test_a_rank_counts_the_candidates_that_are_at_least_as_likely() -> None:
    scores = torch.tensor(
        [
            [-1.0, -2.0, -3.0],  # the truth is likeliest
            [-1.0, -2.0, -3.0],  # one is likelier
            [-1.0, -3.0, -3.0],  # one is likelier, one is as likely
        ]
    )

    assert ranks_of_truth(scores) == [1, 2, 3]


def test_recall_is_a_share_of_queries() -> None:
    assert figures_of([1, 5, 6, 11]) == {
        "recall_at_1": 0.25,
        "recall_at_5": 0.5,
        "recall_at_10": 0.75,
        "median_rank": 5.5,
    }


def test_captions_are_ranked_over_columns_and_pictures_over_rows() -> None:
    """Two pairs, where the first caption is likeliest for both pictures."""
    scores = torch.tensor([[-1.0, -1.0], [-2.0, -2.0]])
    retrieval = Retrieval(
        pairs=(4, 7),
        scores={"text_given_image": scores, "image_given_text": torch.eye(2), "sum": scores},
    )

    figures, records = retrieval.figures(), retrieval.records()

    assert figures["candidates"] == 2
    assert figures["captions_of_pictures"]["sum"]["recall_at_1"] == 0.5
    assert figures["pictures_of_captions"]["sum"]["recall_at_1"] == 0.0  # ties count against it
    assert records[4] == {
        "caption_rank": 1,
        "likeliest_captions": [4, 7],
        "picture_rank": 2,
        "likeliest_pictures": [4, 7],
    }
    assert records[7]["caption_rank"] == 2


@dataclass(frozen=True)
class Pair:
    """A pair whose picture stands for its own codes."""

    caption: str
    image: Any


class Model:
    """A model of the tiny pairs: a caption is a number of a text, a picture one of codes."""

    def __init__(self, model: torch.nn.Sequential) -> None:
        self.likelihood = Likelihood(model, CONFIG)
        self.text, self.codes = tiny_pairs()
        self.batches: list[int] = []

    def text_ids(self, prompts: Sequence[str]) -> Tensor:
        return self.text[[int(prompt) for prompt in prompts]]

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        self.batches.append(len(images))
        return self.codes[[image.width - 1 for image in images]].view(-1, 2, 2)


def pair(caption: int, picture: int) -> Pair:
    return Pair(caption=str(caption), image=Image.new("RGB", (picture + 1, 1)))


def test_scores_are_the_likelihoods_of_every_caption_with_every_picture() -> None:
    model = Model(tiny_model())

    found = retrieve(model, [pair(0, 0), pair(2, 1), pair(1, 2)], candidates=2, batch_size=1)

    text, codes = model.text[[0, 2]], model.codes[[0, 1]]
    assert found.pairs == (0, 1)
    assert model.batches == [1, 1]
    assert found.scores["text_given_image"].equal(model.likelihood.matrix(TO_TEXT, text, codes))
    assert found.scores["image_given_text"].equal(model.likelihood.matrix(TO_IMAGE, text, codes))
    both = found.scores["text_given_image"] + found.scores["image_given_text"]
    assert found.scores["sum"].equal(both)


def test_a_model_that_knows_its_pairs_finds_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model, _ = trained_model()

    found = retrieve(
        Model(model), [pair(index, index) for index in range(3)], candidates=3, batch_size=8
    )

    for question in ("captions_of_pictures", "pictures_of_captions"):
        for figures in found.figures()[question].values():
            assert (figures["recall_at_1"], figures["median_rank"]) == (1.0, 1)
    line = "captions of pictures of 3, by text given image: 100 % in the first 1"
    assert line in caplog.text


def test_only_the_first_pair_of_a_caption_takes_part() -> None:
    pairs = [pair(1, 0), pair(1, 1), pair(0, 2)]

    found = retrieve(Model(tiny_model()), pairs, candidates=2, batch_size=8)

    assert found.pairs == (0, 2)
    with pytest.raises(
        InputError,
        match=r"retrieval.candidates=3: the 3 pairs have 2 different captions.*raise count",
    ):
        retrieve(Model(tiny_model()), pairs, candidates=3, batch_size=8)
