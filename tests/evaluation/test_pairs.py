"""An evaluation draws, captions and judges, and writes all results."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.pairs import Pair, evaluate, mean_picture, read_pairs
from ernie_vilg.generation.likelihood import Likelihood
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.scenes import Scene, SceneObject
from tests.evaluation.generated import Picture, Text
from tests.model.tiny import CONFIG, tiny_model, tiny_pairs

CIRCLE = Scene(objects=(SceneObject(shape="圆形", size="大", colour="红色", quadrant="左上角"),))
STAR = Scene(objects=(SceneObject(shape="五角星", size="小", colour="黑色", quadrant="右下角"),))


class AlwaysTheCircle:
    """A model that knows one picture and one caption."""

    def generate(
        self, prompts: Sequence[str], *, images_per_prompt: int, temperature: float, batch_size: int
    ) -> list[Picture]:
        assert (images_per_prompt, temperature) == (1, 0.0)
        return [Picture(draw_scene(CIRCLE)) for _ in prompts]

    def caption(
        self, images: Sequence[Image.Image], *, batch_size: int, temperature: float
    ) -> list[Text]:
        assert temperature == 0.0
        return [Text(caption_of(CIRCLE)) for _ in images]

    likelihood = Likelihood(tiny_model(), CONFIG)

    def text_ids(self, prompts: Sequence[str]) -> Tensor:
        return tiny_pairs()[0][: len(prompts)]

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.arange(len(images)).view(-1, 1, 1)

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        return [draw_scene(CIRCLE) for _ in codes]


@pytest.fixture
def raw_pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "held_out"
    (folder / "images").mkdir(parents=True)
    lines = []
    for index, scene in enumerate([CIRCLE, STAR]):
        draw_scene(scene).save(folder / f"images/{index}.png")
        lines.append(json.dumps({"image": f"images/{index}.png", "caption": caption_of(scene)}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_half_right_model_gets_half(tmp_path: Path, raw_pairs: Path) -> None:
    pairs = read_pairs(raw_pairs, count=2, image_size=64)
    out = tmp_path / "out"
    out.mkdir()

    scores = evaluate(AlwaysTheCircle(), pairs, out, codebook_size=8, judge="shapes", batch_size=2)

    assert scores["text_to_image"]["objects_correct"] == 0.5
    assert scores["text_to_image"]["extra_objects"] == 1  # the circle where the star's is blank
    assert scores["text_to_image"]["by_num_objects"]["1"]["num_objects"] == 2
    assert scores["image_to_text"] == {
        "exact_matches": 0.5,
        "captions_correct": 0.5,
        "num_captions": 2,
        "by_num_objects": {"1": 0.5},
    }
    tokenizer = scores["image_tokenizer"]
    assert tokenizer["codebook_usage"] == 0.25  # two of eight codes
    assert tokenizer["objects_correct"] == 0.5
    assert tokenizer["objects_correct_by_num_objects"] == {"1": 0.5}
    assert 5 < tokenizer["psnr"] < 20  # one picture is exact, the other is not
    assert json.loads((out / "evaluation.json").read_text()) == scores
    records = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert [record["caption_correct"] for record in records] == [True, False]
    assert [record["objects_correct"] for record in records] == [1, 0]
    assert records[1]["caption"] == caption_of(STAR)
    for record in records:
        for kind in ("original", "drawn", "reconstructed"):
            with Image.open(out / record[kind]) as image:
                assert image.size == (64, 64)
    assert (out / "drawn.png").is_file()
    assert (out / "reconstructed.png").is_file()


def test_without_a_judge_captions_may_say_anything(tmp_path: Path) -> None:
    pair = Pair(image=draw_scene(CIRCLE), caption="井号", file="images/0.png")

    scores = evaluate(
        AlwaysTheCircle(), [pair], tmp_path, codebook_size=8, judge="none", batch_size=2
    )

    assert scores["text_to_image"] == {"psnr": 99.0}
    assert scores["image_to_text"] == {"exact_matches": 0.0}


class Repeats(AlwaysTheCircle):
    """A model that writes NFKC with full-width marks, as every text tokenizer decodes."""

    def caption(
        self, images: Sequence[Image.Image], *, batch_size: int, temperature: float
    ) -> list[Text]:
        return [Text("ABC，红")]


def test_a_caption_that_ids_cannot_tell_from_the_true_one_is_exact(tmp_path: Path) -> None:
    pair = Pair(image=draw_scene(CIRCLE), caption="ＡＢＣ，红", file="images/0.png")

    scores = evaluate(Repeats(), [pair], tmp_path, codebook_size=8, judge="none", batch_size=2)

    assert scores["image_to_text"] == {"exact_matches": 1.0}


def test_captions_are_compared_in_what_the_text_tokenizer_keeps(tmp_path: Path) -> None:
    pair = Pair(image=draw_scene(CIRCLE), caption="abc ，红", file="images/0.png")

    scores = evaluate(
        Repeats(), [pair], tmp_path, codebook_size=8, judge="none", batch_size=2,
        comparable=lambda caption: caption.lower().replace(" ", ""),
    )  # fmt: skip

    assert scores["image_to_text"] == {"exact_matches": 1.0}


def test_too_few_pairs_are_refused(raw_pairs: Path) -> None:
    with pytest.raises(ValueError, match=r"count=3: .* holds 2 pairs"):
        read_pairs(raw_pairs, count=3, image_size=64)


def test_pairs_that_cannot_be_used_are_skipped_and_counted(
    raw_pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (raw_pairs / "images/0.png").write_bytes(b"no picture")

    (pair,) = read_pairs(raw_pairs, count=1, image_size=64)

    assert pair.file == "images/1.png"
    (line,) = caplog.messages
    assert "unusable pairs skipped: 1 (unreadable_image: 1)" in line
    assert "the first is captions.jsonl line 1: unreadable_image '0.png'" in line


def test_missing_picture_is_named(raw_pairs: Path) -> None:
    (raw_pairs / "images/1.png").unlink()

    with pytest.raises(ValueError, match="line 2: missing_image"):
        read_pairs(raw_pairs, count=2, image_size=64)


def test_unreadable_picture_is_named(raw_pairs: Path) -> None:
    (raw_pairs / "images/1.png").write_bytes(b"no picture")

    with pytest.raises(ValueError, match=r"unreadable_image '1\.png'"):
        read_pairs(raw_pairs, count=2, image_size=64)


def test_drawn_pictures_are_compared_with_the_mean_of_the_training_pictures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Means of 10 and 20 are 15: 5 from either, where the drawing is 1 and 9 away."""
    levels = {"a": 10, "b": 20}
    for name, level in levels.items():
        Image.new("RGB", (8, 8), (level, level, level)).save(tmp_path / f"{name}.png")
    records = [{"image": f"{name}.png", "caption": name} for name in (*levels, "missing")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")

    baseline = mean_picture(tmp_path, image_size=4)

    assert baseline.size == (4, 4)
    assert set(baseline.get_flattened_data()) == {(15, 15, 15)}
    assert "unusable pairs skipped: 1 (missing_image: 1)" in caplog.text

    pairs = read_pairs(tmp_path, count=2, image_size=4)
    out = tmp_path / "out"
    out.mkdir()
    scores = evaluate(
        Draws(11), pairs, out, codebook_size=8, judge="none", batch_size=2, baseline=baseline
    )

    found = scores["text_to_image"]
    assert found["psnr_of_mean_picture"] == pytest.approx(20 * math.log10(255 / 5))
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / ((1 + 81) / 2)))


class Draws(AlwaysTheCircle):
    """A model that draws one grey level."""

    def __init__(self, level: int) -> None:
        self.picture = Image.new("RGB", (4, 4), (level, level, level))

    def generate(
        self, prompts: Sequence[str], *, images_per_prompt: int, temperature: float, batch_size: int
    ) -> list[Picture]:
        return [Picture(self.picture) for _ in prompts]

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        return [self.picture for _ in codes]


def test_a_data_set_without_pictures_has_no_mean(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("", encoding="utf-8")

    with pytest.raises(InputError, match=r"training_pairs=.* holds no usable pair \(no rows\)"):
        mean_picture(tmp_path, image_size=4)
