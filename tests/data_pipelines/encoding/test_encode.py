"""Token shards have the right codes and lineage, and no shard is encoded twice."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.building.build import build_image_shards
from data_pipelines.encoding import encode
from data_pipelines.encoding.encode import encode_image_shards
from data_pipelines.encoding.task import EncodingTask
from data_pipelines.shard_writer import write_shard
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.shards import BuildShardsConfig, EncodeShardsConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.data.shards.open_shards import Sample, read_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file, sha256_of_json, write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.shard_manifest import read_manifest, write_manifest
from ernie_vilg.text_tokenizer import (
    MODEL_FILE,
    TextTokenizer,
    train_text_tokenizer,
    write_text_tokenizer,
)
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import load_image_tokenizer, save_image_tokenizer

CAPTIONS = ("红色", "绿色的圆", "蓝色的大正方形", "黄色", "紫色", "灰色的三角形", "黑色")


def tiny_vqgan(image_size: int, seed: int = 0) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(
        ImageTokenizerConfig(
            image_size=image_size,
            codebook_size=16,
            embedding_size=4,
            base_channels=8,
            channel_multipliers=(1, 1),
            num_residual_blocks=1,
            normalization="none",
        )
    )


def build_images(folder: Path, image_format: str) -> None:
    build_image_shards(
        BuildShardsConfig(
            source=str(folder / "source"),
            output_dir=str(folder / "images"),
            image_size=8,
            samples_per_shard=3,
            image_format=image_format,
            overwrite=True,
        )
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with image shards of 3, 3 and 1 samples and both tokenizers."""
    source = tmp_path / "source"
    source.mkdir()
    noise = np.random.default_rng(0)
    lines = []
    for index, caption in enumerate(CAPTIONS):
        pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "caption": caption, "index": index}))
    (source / "captions.jsonl").write_text("\n".join(lines))
    build_images(tmp_path, "png")
    settings = TrainTextTokenizerConfig(shards="unused", output_dir="unused", vocab_size=300)
    (tmp_path / "text").mkdir()
    write_text_tokenizer(tmp_path / "text", train_text_tokenizer(CAPTIONS * 9, settings), {})
    save_image_tokenizer(tiny_vqgan(8), tmp_path / "vqgan")
    return tmp_path


def config(folder: Path, name: str = "tokens", **settings: object) -> EncodeShardsConfig:
    return EncodeShardsConfig(
        shards=str(folder / "images"),
        text_tokenizer_dir=str(folder / "text"),
        image_tokenizer_dir=str(folder / "vqgan"),
        output_dir=str(folder / name),
        **{"batch_size": 2, **settings},
    )


def samples_of(folder: Path, name: str, kind: str) -> list[Sample]:
    manifest = read_manifest(folder / name, kind)
    return [sample for shard in manifest.shards for sample in read_shard(folder / name, shard)]


def array_of(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def test_tokens_are_those_of_the_tokenizers(folder: Path) -> None:
    encode_image_shards(config(folder))

    images, tokens = samples_of(folder, "images", "image"), samples_of(folder, "tokens", "token")
    vqgan, _ = load_image_tokenizer(folder / "vqgan")
    text_tokenizer = TextTokenizer.load(folder / "text")
    assert len(tokens) == len(CAPTIONS)
    for image, token, caption in zip(images, tokens, CAPTIONS, strict=True):
        assert token["__key__"] == image["__key__"]
        assert token["json"] == image["json"]
        codes, ids = array_of(token["codes.npy"]), array_of(token["text.npy"])
        assert (codes.dtype, codes.shape, ids.dtype) == (np.uint16, (4, 4), np.int32)
        pixels = np.asarray(Image.open(io.BytesIO(image["png"]))).astype(np.float32)
        one = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
        assert codes.tolist() == vqgan.encode(one)[0].tolist()
        assert text_tokenizer.decode(ids.tolist()) == caption


def test_the_manifest_records_lineage_and_settings(folder: Path) -> None:
    manifest = encode_image_shards(config(folder))

    images = read_manifest(folder / "images", "image")
    assert read_manifest(folder / "tokens", "token") == manifest
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    assert manifest.lineage == {
        "text_tokenizer": sha256_of_file(folder / "text" / MODEL_FILE),
        "image_tokenizer": sha256_of_file(folder / "vqgan" / "image_tokenizer.safetensors"),
        "crop_settings": sha256_of_json(
            {
                "image_size": 8,
                "crop": "center",
                "resample": "lanczos",
                "background": "white",
                "image_format": "png",
            }
        ),
        "image_shards": images.digest(),
    }
    text_lengths = [
        len(array_of(sample["text.npy"])) for sample in samples_of(folder, "tokens", "token")
    ]
    assert manifest.settings == {
        "image_size": 8,
        "grid_size": 4,
        "codebook_size": 16,
        "text_vocab_size": TextTokenizer.load(folder / "text").vocab_size,
        "max_text_tokens": max(text_lengths),
        "num_text_tokens": sum(text_lengths),
        "caption_lengths": {  # with the end of text
            str(length + 1): text_lengths.count(length) for length in sorted(set(text_lengths))
        },
        "captions": "all",
        "num_captions": 7,
        "max_captions_per_picture": 1,
        "max_text_ids_per_picture": max(text_lengths),
        "pixels": False,
        "precision": "fp32",
        "views": 1,
        "cuts": None,
        "codes": {"file": "codes.json", "sha256": sha256_of_file(folder / "tokens" / "codes.json")},
    }
    # The work folder is gone.
    assert {path.name for path in folder.iterdir()} == {
        "source", "images", "text", "vqgan", "tokens",
    }  # fmt: skip


@pytest.mark.gpu
def test_a_gpu_gives_the_codes_of_the_cpu(folder: Path) -> None:
    for device in ("cpu", "cuda"):
        encode_image_shards(config(folder, device, device=device))

    pairs = zip(
        samples_of(folder, "cpu", "token"), samples_of(folder, "cuda", "token"), strict=True
    )
    same = [array_of(one["codes.npy"]) == array_of(other["codes.npy"]) for one, other in pairs]
    assert np.mean(same) > 0.99  # near ties may differ


def test_a_gpu_that_is_not_there_is_refused_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(InputError, match="device=cuda:1 but torch finds no GPU"):
        encode_image_shards(config(folder, device="cuda:1"))

    assert not list(folder.glob("*tokens*"))


def test_two_processes_write_the_same_shards(folder: Path) -> None:
    alone = encode_image_shards(config(folder, "alone"))
    together = encode_image_shards(config(folder, "together", num_workers=2))

    assert together == alone


@pytest.mark.parametrize(("image_format", "member"), [("png", "png"), ("jpeg", "jpg")])
def test_kept_pixels_are_the_image_shards_own_bytes(
    folder: Path, image_format: str, member: str
) -> None:
    build_images(folder, image_format)

    manifest = encode_image_shards(config(folder, keep_pixels=True))

    images, tokens = samples_of(folder, "images", "image"), samples_of(folder, "tokens", "token")
    assert manifest.settings["pixels"] is True
    assert manifest.shards[0].members == tuple(sorted(("codes.npy", "json", member, "text.npy")))
    assert [token[member] for token in tokens] == [image[member] for image in images]


def encode_until(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, stop_after: int, **settings: object
) -> list[str]:
    """Encode, stop with an error after some shards, and return the shards that were encoded."""
    encoded: list[str] = []
    original = encode.encode_shard

    def counted(task: EncodingTask) -> None:
        if len(encoded) == stop_after:
            raise KeyboardInterrupt
        original(task)
        encoded.append(task.shard.file)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "encode_shard", counted)
        try:
            encode_image_shards(config(folder, **settings))
        except KeyboardInterrupt:
            assert not (folder / "tokens").exists()
    return encoded


def test_a_restart_encodes_only_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode_until(folder, monkeypatch, stop_after=2)
    second = encode_until(folder, monkeypatch, stop_after=9)

    assert first == ["images-00000.tar", "images-00001.tar"]
    assert second == ["images-00002.tar"]
    whole = encode_image_shards(config(folder, "uninterrupted"))
    assert read_manifest(folder / "tokens", "token") == whole


def test_a_finished_shard_that_was_damaged_is_encoded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_until(folder, monkeypatch, stop_after=2)
    shard = folder / ".encoding-tokens" / "shards" / "tokens-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])

    encoded = encode_until(folder, monkeypatch, stop_after=9)

    assert encoded == ["images-00000.tar", "images-00002.tar"]


@pytest.mark.parametrize(
    "lengths",
    [None, {"3": 2}, {"x": 3}, {"3": "3"}],
    ids=["not counted", "too few", "no length", "text"],
)
def test_a_finished_shard_whose_text_was_not_counted_is_encoded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lengths: object
) -> None:
    encode_until(folder, monkeypatch, stop_after=2)
    record = folder / ".encoding-tokens" / "records" / "00001.json"
    content = read_json(record)
    del content["caption_lengths"]  # as older versions wrote it
    write_json(record, content if lengths is None else {**content, "caption_lengths": lengths})

    encoded = encode_until(folder, monkeypatch, stop_after=9)

    assert encoded == ["images-00001.tar", "images-00002.tar"]
    whole = encode_image_shards(config(folder, "uninterrupted"))
    assert read_manifest(folder / "tokens", "token") == whole


def test_another_tokenizer_starts_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_until(folder, monkeypatch, stop_after=2)
    save_image_tokenizer(tiny_vqgan(8, seed=1), folder / "vqgan")

    encoded = encode_until(folder, monkeypatch, stop_after=9)

    assert encoded == ["images-00000.tar", "images-00001.tar", "images-00002.tar"]


def test_keeping_pixels_starts_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_until(folder, monkeypatch, stop_after=2)

    encoded = encode_until(folder, monkeypatch, stop_after=9, keep_pixels=True)

    assert encoded == ["images-00000.tar", "images-00001.tar", "images-00002.tar"]


def write_image_shard(folder: Path, captions: list[bytes]) -> None:
    """Replace the image shards by one with these captions, as another program may write them."""
    images = read_manifest(folder / "images", "image")
    samples = samples_of(folder, "images", "image")
    path = folder / "images" / "images-00000.tar"
    changed = [{**samples[i], "txt": caption} for i, caption in enumerate(captions)]
    shard = write_shard(path, iter(changed), members=("json", "png", "txt"))
    assert shard is not None
    settings = {name: value for name, value in images.settings.items() if name != "captions"}
    write_manifest(folder / "images", replace(images, shards=(shard,), settings=settings))


def test_captions_of_others_are_cleaned_as_ours_are(folder: Path) -> None:
    write_image_shard(folder, ["红\u200b色\u202e\n".encode(), " 绿色的\u2060圆".encode()])

    encode_image_shards(config(folder))

    tokenizer = TextTokenizer.load(folder / "text")
    ids = [array_of(token["text.npy"]).tolist() for token in samples_of(folder, "tokens", "token")]
    assert ids == [tokenizer.encode("红色"), tokenizer.encode("绿色的圆")]


@pytest.mark.parametrize("caption", [b"\xba\xec", b" \n"], ids=["GBK", "white space"])
def test_a_caption_that_is_no_text_is_named(folder: Path, caption: bytes) -> None:
    write_image_shard(folder, ["红色".encode(), caption])

    with pytest.raises(
        ValueError, match=r"sample '00000001' of \S+/images-00000\.tar has no caption in UTF-8"
    ):
        encode_image_shards(config(folder))


def test_another_image_size_is_refused(folder: Path) -> None:
    save_image_tokenizer(tiny_vqgan(16), folder / "vqgan")

    with pytest.raises(
        ValueError, match=r"hold images of 8 pixels, .* was trained on 16: build shards with"
    ):
        encode_image_shards(config(folder))


def test_earlier_token_shards_are_replaced_only_when_asked(folder: Path) -> None:
    encode_image_shards(config(folder))
    save_image_tokenizer(tiny_vqgan(8, seed=1), folder / "vqgan")
    with pytest.raises(ValueError, match="already exists: set overwrite=true"):
        encode_image_shards(config(folder))

    manifest = encode_image_shards(config(folder, overwrite=True))

    assert read_manifest(folder / "tokens", "token") == manifest
