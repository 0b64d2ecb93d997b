"""Disturbed pictures and unseen pairs are captioned, drawn, judged and shown apart."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.config.evaluation import EvaluateConfig
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.harder_sets import disturbed_sets, log_table, table_of, unseen_pairs
from ernie_vilg.evaluation.pairs import Pair
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.judge import read_objects
from ernie_vilg.shapes.looks import look_record
from ernie_vilg.shapes.scenes import SceneObject, scene_of
from ernie_vilg.shapes.splits import HELD_OUT, ScenePair, scene_pair
from ernie_vilg.shapes.variety import VARIETIES
from tests.evaluation.generated import Picture, Text


class ByHeart:
    """A model that knows the exact pixels of some pictures, and no others."""

    def __init__(self, pairs: Sequence[ScenePair]) -> None:
        self.captions = {pair.draw().tobytes(): pair.caption for pair in pairs}
        self.pictures = {pair.caption: pair.draw() for pair in pairs}

    def generate(
        self, prompts: Sequence[str], *, images_per_prompt: int, temperature: float, batch_size: int
    ) -> list[Picture]:
        return [Picture(self.pictures[prompt]) for prompt in prompts]

    def caption(
        self, images: Sequence[Image.Image], *, batch_size: int, temperature: float
    ) -> list[Text]:
        return [Text(self.captions.get(image.tobytes(), "unknown")) for image in images]

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.zeros(len(images), 1, 1)

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        raise NotImplementedError


class Sees(ByHeart):
    """A model that reads any picture."""

    def caption(
        self, images: Sequence[Image.Image], *, batch_size: int, temperature: float
    ) -> list[Text]:
        return [Text(described(image)) for image in images]


def described(image: Image.Image) -> str:
    objects = []
    for reading in read_objects(image).values():
        assert reading.shape is not None
        assert reading.size is not None
        assert reading.colour is not None
        objects.append(SceneObject(**asdict(reading)))
    return caption_of(scene_of(objects))


@pytest.fixture(scope="module")
def scenes() -> list[ScenePair]:
    moderate = VARIETIES["moderate"]
    return [scene_pair(moderate, seed=0, split=HELD_OUT, index=index) for index in range(6)]


def as_pairs(scenes: Sequence[ScenePair]) -> list[Pair]:
    return [
        Pair(
            image=scene.draw(),
            caption=scene.caption,
            file=f"{index}.png",
            record={"caption": scene.caption, "look": look_record(scene.look)},
        )
        for index, scene in enumerate(scenes)
    ]


def test_a_model_that_sees_is_right_on_every_disturbed_set(
    tmp_path: Path, scenes: list[ScenePair]
) -> None:
    scores = disturbed_sets(Sees(scenes), as_pairs(scenes), tmp_path, batch_size=4)

    assert list(scores) == ["second_renderer", "shifted_1", "shifted_2", "jpeg_80"]
    assert [set_["captions_correct"] for set_ in scores.values()] == [1.0] * 4
    assert scores["jpeg_80"]["by_num_objects"] == {"1": 1.0, "2": 1.0, "3": 1.0}
    lines = (tmp_path / "captions_of_sets.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["set"] for record in records[::6]] == list(scores)
    for record in records:
        with Image.open(tmp_path / record["picture"]) as picture:
            assert described(picture) == record["written"]


def test_a_model_that_knows_pixels_by_heart_fails_on_every_disturbed_set(
    tmp_path: Path, scenes: list[ScenePair]
) -> None:
    scores = disturbed_sets(ByHeart(scenes), as_pairs(scenes), tmp_path, batch_size=4)

    assert [set_["captions_correct"] for set_ in scores.values()] == [0.0] * 4


def test_pictures_without_a_look_cannot_be_disturbed(
    tmp_path: Path, scenes: list[ScenePair]
) -> None:
    pair = Pair(image=scenes[0].draw(), caption=scenes[0].caption, file="0.png")

    with pytest.raises(ValueError, match="has no 'look'"):
        disturbed_sets(ByHeart(scenes), [pair], tmp_path, batch_size=4)


def test_unseen_pairs_are_drawn_and_captioned(tmp_path: Path, scenes: list[ScenePair]) -> None:
    model = ByHeart(scenes)
    model.pictures[scenes[1].caption] = scenes[0].draw()  # one object instead of two

    scores = unseen_pairs(model, as_pairs(scenes), tmp_path, batch_size=4, temperature=0.0)

    assert scores["image_to_text"]["captions_correct"] == 1.0
    drawn = {key: part["scenes_correct"] for key, part in by_number(scores["text_to_image"])}
    assert drawn == {"1": 1.0, "2": 0.5, "3": 1.0}
    assert len(list((tmp_path / "unseen_pairs/drawn").glob("*.png"))) == 6
    assert (tmp_path / "unseen_pairs.png").is_file()


def by_number(scores: dict[str, Any]) -> Any:
    return scores["by_num_objects"].items()


SCORES: dict[str, Any] = {
    "text_to_image": {
        "objects_correct": 0.75,
        "by_num_objects": {"1": {"objects_correct": 1.0}, "2": {"objects_correct": 0.5}},
    },
    "image_to_text": {"captions_correct": 0.875, "by_num_objects": {"1": 1.0, "2": 0.75}},
    "image_tokenizer": {
        "objects_correct": 1.0,
        "objects_correct_by_num_objects": {"1": 1.0, "2": 1.0},
    },
}


def test_the_table_has_a_row_per_set(caplog: pytest.LogCaptureFixture) -> None:
    written = {"captions_correct": 0.5, "by_num_objects": {"1": 0.25, "2": 0.75}}
    nothing = {"objects_correct": 0.0}
    drawn = {**nothing, "by_num_objects": {"1": nothing, "2": nothing}}
    hard = {
        "disturbed": {"jpeg_80": written},
        "unseen_pairs": {"text_to_image": drawn, "image_to_text": written},
    }

    table = table_of(SCORES | hard)

    assert table == [
        ["set", "all", "1 object", "2 objects"],
        ["objects right after the image tokenizer alone", "100.0 %", "100.0 %", "100.0 %"],
        ["objects drawn right", "75.0 %", "100.0 %", "50.0 %"],
        ["objects drawn right, unseen pairs", "0.0 %", "0.0 %", "0.0 %"],
        ["captions right", "87.5 %", "100.0 %", "75.0 %"],
        ["captions right, jpeg 80", "50.0 %", "25.0 %", "75.0 %"],
        ["captions right, unseen pairs", "50.0 %", "25.0 %", "75.0 %"],
    ]
    with caplog.at_level(logging.INFO):
        log_table(table)
    assert len(caplog.messages) == len(table)
    assert len({len(line) for line in caplog.messages}) == 1  # aligned
    assert table_of(SCORES)[1:] == [table[1], table[2], table[4]]


def test_there_is_no_table_without_a_judge() -> None:
    assert table_of({"text_to_image": {}, "image_to_text": {}, "image_tokenizer": {}}) == []


def test_an_unjudged_evaluation_refuses_harder_sets() -> None:
    with pytest.raises(InputError, match="disturbed=true with judge=none"):
        EvaluateConfig(weights="w", pairs="p", output_dir="o", judge="none", disturbed=True)
    with pytest.raises(InputError, match="unseen_pairs=u with judge=none"):
        EvaluateConfig(weights="w", pairs="p", output_dir="o", judge="none", unseen_pairs="u")


class DrawsThrice(ByHeart):
    """A model whose pictures are right only if it may choose among three."""

    def generate(
        self, prompts: Sequence[str], *, images_per_prompt: int, temperature: float, batch_size: int
    ) -> list[Picture]:
        return [Picture(Image.new("RGB", (64, 64), "white")) for _ in prompts]

    def generate_chosen(
        self, prompts: Sequence[str], *, drawings: int, temperature: float, batch_size: int
    ) -> list[Picture]:
        assert (drawings, temperature) == (3, 0.5)
        return [Picture(self.pictures[prompt]) for prompt in prompts]


def test_of_several_drawings_the_chosen_ones_are_judged(
    tmp_path: Path, scenes: list[ScenePair]
) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "temperature": 0.5}
    model, pairs = DrawsThrice(scenes), as_pairs(scenes)

    for drawings, share in ((1, 0.0), (3, 1.0)):
        folder = tmp_path / str(drawings)
        folder.mkdir()
        scores = unseen_pairs(model, pairs, folder, drawings=drawings, **settings)
        assert scores["text_to_image"]["objects_correct"] == share


def test_several_drawings_of_temperature_0_are_refused() -> None:
    with pytest.raises(InputError, match="drawings=4 with temperature=0: all pictures"):
        EvaluateConfig(weights="w", pairs="p", output_dir="o", drawings=4)
