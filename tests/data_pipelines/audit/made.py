"""A small sound data set: image shards with a held-out one, metadata, examples, token shards."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.encoding.encode import encode_image_shards
from data_pipelines.metadata import (
    CURATION_FILE,
    EXAMPLE_COLUMNS,
    EXAMPLES_FILE,
    FINAL_COLUMNS,
    METADATA_FOLDER,
    write_rows,
)
from data_pipelines.shard_writer import shard_name, write_shard
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.data.shards.open_shards import Sample
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.shard_manifest import Manifest, write_manifest
from ernie_vilg.text_tokenizer import train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.quantizers.distances import flatten_grid
from ernie_vilg.vqgan.weights import save_image_tokenizer

CAPTIONS: Mapping[str, Sequence[str]] = {
    "00000000": ["红色的圆"],
    "00000001": ["绿色的圆"],
    "00000002": ["蓝色的大正方形"],
    "00000003": ["黄色", "黄色的圆"],
    "00000005": ["灰色的三角形"],
    "00000006": ["黑色"],
    "00000008": ["黄色"],
}
"""Captions of every sample by its key; one has two of them, and the last one is held out."""
TRAIN_SHARDS = (("00000000", "00000001", "00000002"), ("00000003", "00000005", "00000006"))
HELD_OUT_SHARDS = (("00000008",),)
REJECTED = {4: ("too_few_nouns", "0 nouns"), 7: ("near_duplicate_picture", "distance 12")}
"""Reason and detail of the rejected rows by their number."""
RULES = {"default": {"min_nouns": 1, "max_words": 15, "min_characters": 0, "languages": ["zh"]}}


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sample(key: str, captions: Sequence[str], **changed: bytes) -> Sample:
    record: dict[str, Any] = {"caption": captions[0]}
    if len(captions) > 1:
        record["captions"] = [*captions]
    return {
        "__key__": key.encode(),
        "png": picture(int(key)),
        "txt": "\n".join(captions).encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
        **changed,
    }


def write_image_folder(folder: Path, shards: Sequence[Sequence[Sample]]) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, samples in enumerate(shards):
        path = folder / shard_name("images", number)
        entry = write_shard(path, samples, members=("json", "png", "txt"))
        assert entry is not None
        entries.append(entry)
    settings = {"image_size": 8, "crop": "center", "image_format": "png", "captions": "all"}
    manifest = Manifest(kind="image", shards=tuple(entries), settings=settings, lineage={})
    write_manifest(folder, manifest)
    return manifest


def write_images(
    folder: Path, captions: Mapping[str, Sequence[str]], changed: Mapping[str, Sample] | None = None
) -> None:
    """Write train and held-out shards; `changed` replaces samples by key."""
    changed = changed or {}
    for place, shards in ((folder, TRAIN_SHARDS), (folder / "held_out", HELD_OUT_SHARDS)):
        write_image_folder(
            place,
            [[changed.get(key, sample(key, captions[key])) for key in keys] for keys in shards],
        )


def metadata_rows(captions: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the rows of all parts; a row's number over all is its part times 5 plus its row."""
    rows: list[dict[str, Any]] = []
    for split, shards in (("train", TRAIN_SHARDS), ("held_out", HELD_OUT_SHARDS)):
        for number, keys in enumerate(shards):
            rows += [
                {
                    **row_of(int(key), caption, further),
                    "verdict": "kept",
                    "split": split,
                    "shard": number,
                    "key": key,
                    "is_enlarged": key == "00000001",
                }
                for key in keys
                for further, caption in enumerate(captions[key])
            ]
    for number, (reason, detail) in REJECTED.items():
        judged = {"verdict": "rejected", "reason": reason, "detail": detail}
        rows.append({**row_of(number, "一个", 0), **judged})
    # Rows 2 and 7 are near-duplicates, of which 2 is kept.
    for row in rows:
        if row["picture_id"] in ("2.png", "7.png"):
            row["cluster"] = 1
    return sorted(rows, key=lambda row: (row["part"], row["row"]))


def row_of(number: int, caption: str, further: int) -> dict[str, Any]:
    return {
        "part": number // 5,
        "row": number % 5 + 100 * further,
        "source": "web" if number < 5 else "books",
        "place": f"captions.jsonl line {number + 1}",
        "picture_id": f"{number}.png",
        "caption": caption,
        "record": "{}",
        "width": 10 + number,
        "height": 10,
        "characters": len(caption),
        "nouns": number % 3,
        "language": "zh",
        "similarity": 0.4 + number / 20,
        "pixels_sha256": f"{number:064x}",
    }


def write_metadata(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / METADATA_FOLDER).mkdir(exist_ok=True)
    for part in {row["part"] for row in rows}:
        path = folder / METADATA_FOLDER / f"rows-{part:05d}.parquet"
        write_rows(path, [row for row in rows if row["part"] == part], FINAL_COLUMNS)


def write_curation(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    sources: dict[str, dict[str, Any]] = {}
    for row in rows:
        counts = sources.setdefault(row["source"], {"rows": 0, "kept": 0, "rejected": {}})
        counts["rows"] += 1
        counts["kept"] += row["verdict"] == "kept"
        if row["verdict"] == "rejected":
            counts["rejected"][row["reason"]] = counts["rejected"].get(row["reason"], 0) + 1
    samples = {
        "train": sum(map(len, TRAIN_SHARDS)), "held_out": sum(map(len, HELD_OUT_SHARDS)),
    }  # fmt: skip
    content = {"sources": sources, "samples": samples, "settings": {"rules": RULES}}
    write_json(folder / CURATION_FILE, content)


def write_examples(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write every row as an example, and those of clusters a second time."""
    examples = [
        {**row, "kind": kind, "jpeg": thumbnail(row["row"])}
        for row in rows
        for kind in [row["verdict"], *(["cluster"] if row.get("cluster") else [])]
    ]
    write_rows(folder / EXAMPLES_FILE, examples, EXAMPLE_COLUMNS)


def thumbnail(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (40 * (number % 6), 120, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tokenizers(folder: Path) -> None:
    settings = TrainTextTokenizerConfig(shards="unused", output_dir="unused", vocab_size=300)
    (folder / "text").mkdir()
    texts = [caption for captions in CAPTIONS.values() for caption in captions]
    write_text_tokenizer(folder / "text", train_text_tokenizer(texts * 9, settings), {})
    torch.manual_seed(0)
    vqgan = VQGAN(
        ImageTokenizerConfig(
            image_size=8,
            codebook_size=16,
            embedding_size=4,
            base_channels=8,
            channel_multipliers=(1, 1),
            num_residual_blocks=1,
            normalization="none",
        )
    )
    with torch.no_grad():  # codes that pictures do use
        vectors = flatten_grid(vqgan.encoder(torch.rand(4, 3, 8, 8) * 2 - 1))
        vqgan.quantizer.codebook.copy_(vectors[torch.randperm(len(vectors))[:16]])
    save_image_tokenizer(vqgan, folder / "vqgan")


def encode(folder: Path, **settings: Any) -> None:
    encode_image_shards(
        EncodeShardsConfig(
            shards=str(folder / "images"),
            text_tokenizer_dir=str(folder / "text"),
            image_tokenizer_dir=str(folder / "vqgan"),
            output_dir=str(folder / "tokens"),
            overwrite=True,
            **settings,
        )
    )


def write_all(folder: Path) -> None:
    """Write a sound data set: images, tokens, text and vqgan."""
    write_images(folder / "images", CAPTIONS)
    rows = metadata_rows(CAPTIONS)
    write_metadata(folder / "images", rows)
    write_curation(folder / "images", rows)
    write_examples(folder / "images", rows)
    write_tokenizers(folder)
    encode(folder)
