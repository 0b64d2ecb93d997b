"""Scorers made of transformers' classes. One file, because their import takes seconds."""

import json
import shutil
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.building.build import build_image_shards
from data_pipelines.curation.models.classifier import ClassifierScorer
from data_pipelines.curation.models.clip import ClipScorer
from data_pipelines.curation.models.folder import ModelFolder
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from tests.data_pipelines.curation.models.tiny_models import (
    CHINESE_TOKENS,
    SIDE,
    write_chinese_clip,
    write_classifier,
    write_clip,
)

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]  # of `tiny_models`


@pytest.fixture(scope="module")
def chinese_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chinese_clip(tmp_path_factory.mktemp("models") / "chinese_clip")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    return write_classifier(folder, ["normal", "NSFW", "drawing"])


@pytest.fixture
def copy(chinese_clip: Path, tmp_path: Path) -> Path:
    """A copy of the ChineseCLIP folder that a test may damage."""
    return Path(shutil.copytree(chinese_clip, tmp_path / "copy"))


def named(path: Path, setting: str = "curation.similarity_model") -> ModelFolder:
    return ModelFolder(path=path, setting=setting)


def pictures(number: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (number, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def pixels_by_hand(image: Image.Image) -> torch.Tensor:
    """Return what the settings ask for: resized by bicubic interpolation, scaled, normalised."""
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    normal = (small / 255 - np.array(MEAN)) / np.array(STD)
    return torch.tensor(normal.transpose(2, 0, 1)[None], dtype=torch.float32)


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, **changes}))


def test_similarity_is_the_cosine_of_the_models_embeddings(chinese_clip: Path) -> None:
    import transformers

    model = transformers.ChineseCLIPModel.from_pretrained(chinese_clip).eval()
    captions = ["红色的圆形", "一个蓝方"]
    scores = ClipScorer(named(chinese_clip)).score(pictures(2), captions)
    for image, caption, score in zip(pictures(2), captions, scores, strict=True):
        ids = ["[CLS]", *caption, "[SEP]"]
        tokens = torch.tensor([[CHINESE_TOKENS.index(token) for token in ids]])
        with torch.no_grad():
            seen = model.get_image_features(pixel_values=pixels_by_hand(image)).pooler_output[0]
            read = model.get_text_features(input_ids=tokens).pooler_output[0]
        assert score == pytest.approx(float(seen @ read / seen.norm() / read.norm()), abs=1e-5)
    assert scores.dtype == np.float32


def test_scores_come_in_order_whatever_the_batches(chinese_clip: Path) -> None:
    scorer, images = ClipScorer(named(chinese_clip)), pictures(20)
    captions = [("一个红色的圆形蓝方" * 2)[: 1 + number % 9] for number in range(20)]
    scores = scorer.score(images, captions)  # batches of 16
    one_by_one = [scorer.score([images[i]], [captions[i]])[0] for i in range(20)]
    assert scores == pytest.approx(one_by_one, abs=1e-6)
    assert len(set(scores.tolist())) == 20
    assert scorer.score([], []).shape == (0,)
    assert (scores == scorer.score(images, captions)).all()


def test_a_picture_of_several_captions_is_seen_once(
    chinese_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, (first, second) = ClipScorer(named(chinese_clip)), pictures(2)
    seen: list[int] = []
    embed = scorer._embed_pictures
    monkeypatch.setattr(
        scorer, "_embed_pictures", lambda images: seen.append(len(images)) or embed(images)
    )
    scores = scorer.score([first, first, second, first], ["红", "蓝", "红", "红"])
    assert seen == [2]
    assert scores[0] == scores[3] != scores[1]


def test_a_caption_is_cut_to_52_tokens(chinese_clip: Path) -> None:
    scorer, (image,) = ClipScorer(named(chinese_clip)), pictures(1)
    whole, longer, shorter = scorer.score([image] * 3, ["红" * 50, "红" * 90, "红" * 49])
    assert whole == longer != shorter


def test_english_clip_scores_too(tmp_path: Path) -> None:
    import transformers

    folder = write_clip(tmp_path / "clip")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    (image,) = pictures(1)
    (score,) = ClipScorer(named(folder)).score([image], ["AB a"])
    with torch.no_grad():  # <start> ab</w> a</w> <end>
        read = model.get_text_features(input_ids=torch.tensor([[5, 4, 2, 6]])).pooler_output[0]
        seen = model.get_image_features(pixel_values=pixels_by_hand(image)).pooler_output[0]
    assert score == pytest.approx(float(seen @ read / seen.norm() / read.norm()), abs=1e-5)


def test_scoring_leaves_the_number_of_threads(chinese_clip: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        ClipScorer(named(chinese_clip)).score(pictures(1), ["红"])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_folder_is_read_by_its_named_files_alone(copy: Path) -> None:
    unchanged = ClipScorer(named(copy)).score(pictures(1), ["红色"])
    code = f"open({str(copy / 'ran')!r}, 'w')"
    (copy / "evil.py").write_text(code)
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        edit(copy / name, auto_map=dict.fromkeys(("AutoModel", "AutoConfig"), "evil.Evil"))
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    (copy / "pytorch_model.bin").write_bytes(b"a pickle beside safetensors is not opened")
    assert ClipScorer(named(copy)).score(pictures(1), ["红色"]) == unchanged
    assert not (copy / "ran").exists()


def test_files_may_be_links(chinese_clip: Path, tmp_path: Path) -> None:
    for file in chinese_clip.iterdir():
        (tmp_path / file.name).symlink_to(file)
    expected = ClipScorer(named(chinese_clip)).score(pictures(1), ["红色"])
    assert ClipScorer(named(tmp_path)).score(pictures(1), ["红色"]) == expected
    assert named(tmp_path).sha256() == named(chinese_clip).sha256()


def test_folder_of_an_older_library_is_read(chinese_clip: Path, copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    edit(
        copy / "config.json", text_config_dict=None, vision_config_dict=None, torch_dtype="float16"
    )
    edit(copy / "preprocessor_config.json", feature_extractor_type="ChineseCLIPFeatureExtractor")
    weights = load_file(copy / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, copy / "model.safetensors")
    expected = ClipScorer(named(chinese_clip)).score(pictures(1), ["红色"])
    assert ClipScorer(named(copy)).score(pictures(1), ["红色"]) == expected


def _drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors")


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def _larger(folder: Path) -> None:
    edit(folder / "config.json", projection_dim=24)


def _no_end_token(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n红\n", encoding="utf-8")


def _many_tokens(folder: Path) -> None:
    tokens = [*CHINESE_TOKENS, *map(str, range(50))]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_drop_tensor, "lacks 1 tensor.*visual_projection.weight", id="tensor"),
        pytest.param(_larger, "2 of another shape.*projection.weight", id="shape"),
        pytest.param(_only_pickle, "pytorch_model.bin, a pickle.*convert it", id="pickle"),
        pytest.param(_truncate, "model.safetensors is damaged", id="truncated"),
        pytest.param(_no_end_token, r"vocab.txt lacks \[SEP\]", id="token"),
        pytest.param(_many_tokens, "64 tokens and its model 40", id="vocabulary"),
        pytest.param(
            lambda folder: edit(folder / "config.json", model_type="bert"),
            "'bert', which is none of chinese_clip, clip",
            id="type",
        ),
        pytest.param(
            lambda folder: edit(folder / "config.json", text_config=3),
            "make no ChineseCLIPModel",
            id="settings",
        ),
        pytest.param(
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "has no preprocessor_config.json, how pictures become its input",
            id="pictures",
        ),
        pytest.param(
            lambda folder: (folder / "vocab.txt").unlink(), "has no vocab.txt", id="vocab"
        ),
    ],
)
def test_unusable_folder_is_refused(copy: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(copy)
    with pytest.raises(InputError, match=message):
        ClipScorer(named(copy))


def test_missing_package_names_its_extra(
    chinese_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"similarity_model needs.*'ernie-vilg\[scorers\]'"):
        ClipScorer(named(chinese_clip))


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_classifier_gives_the_probability_of_its_label(
    classifier: Path, tmp_path: Path, is_multi_label: bool
) -> None:
    import transformers

    folder = Path(shutil.copytree(classifier, tmp_path / "copy"))
    if is_multi_label:
        edit(folder / "config.json", problem_type="multi_label_classification")
    model = transformers.ViTForImageClassification.from_pretrained(classifier).eval()
    images = pictures(3)
    scores = ClassifierScorer(named(folder), labels=("nsfw",)).score(images)
    with torch.no_grad():
        logits = model(torch.cat([pixels_by_hand(image) for image in images])).logits
    expected = 1 / (1 + (-logits).exp()) if is_multi_label else logits.exp()
    if not is_multi_label:
        expected = expected / expected.sum(dim=1, keepdim=True)
    assert scores == pytest.approx(expected[:, 1].numpy(), abs=1e-5)


def test_classifier_without_the_label_is_refused(classifier: Path) -> None:
    with pytest.raises(InputError, match=r"labels are normal, NSFW, drawing.*called watermark or"):
        ClassifierScorer(named(classifier), labels=("watermark", "watermarked"))


def test_pair_model_is_no_classifier(chinese_clip: Path) -> None:
    with pytest.raises(InputError, match=r"'chinese_clip', which is none of .*, vit,"):
        ClassifierScorer(named(chinese_clip, "curation.nsfw_model"), labels=("nsfw",))


def test_shards_hold_the_pairs_that_models_accept(
    chinese_clip: Path, classifier: Path, tmp_path: Path
) -> None:
    captions = ["一个红色的圆形", "蓝方", "红红红", "圆"]
    images = pictures(4)
    similarities = ClipScorer(named(chinese_clip)).score(images, captions)
    least = float(np.sort(similarities)[1] + np.sort(similarities)[0]) / 2  # rejects one pair
    order = [number for number in range(4) if similarities[number] >= least]
    probabilities = ClassifierScorer(named(classifier), labels=("nsfw",)).score(
        [images[number] for number in order]
    )
    most = float(np.sort(probabilities)[1] + np.sort(probabilities)[2]) / 2  # rejects one more
    lines = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        image.save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": caption}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    config = BuildShardsConfig(
        source=str(tmp_path),
        output_dir=str(tmp_path.parent / "shards"),
        image_size=SIDE,
        curation=CurationConfig(
            rules={"default": Rules(min_similarity=least, max_nsfw=most)},
            similarity_model=str(chinese_clip),
            nsfw_model=str(classifier),
        ),
    )
    report = build_image_shards(config)
    table = f"'{config.output_dir}/metadata/*.parquet'"
    rows = duckdb.sql(f"SELECT similarity, nsfw, reason FROM {table} ORDER BY row").fetchall()
    assert [row[0] for row in rows] == pytest.approx(similarities.tolist(), abs=1e-6)
    reasons = {row[2]: number for number, row in enumerate(rows)}
    assert reasons["similarity"] == int(similarities.argmin())
    assert reasons["nsfw"] == order[int(probabilities.argmax())]
    assert rows[reasons["similarity"]][1] is None
    assert report.manifest.num_samples == 2
    assert report.manifest.lineage["similarity_model"] == named(chinese_clip).sha256()
    assert report.manifest.lineage["nsfw_model"] == named(classifier).sha256()
