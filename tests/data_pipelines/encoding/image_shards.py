"""Image shards as launch/build_shards.py writes them, with chosen captions and pictures."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.images import image_settings
from data_pipelines.shard_writer import shard_name, write_shard
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.storage.shard_manifest import Manifest, Shard, write_manifest


def noise_png(seed: int, size: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_sample(number: int, captions: list[str], *, size: int) -> Sample:
    record: dict[str, Any] = {"caption": captions[0], "origin": {"source": "source", "place": "1"}}
    if len(captions) > 1:
        record["captions"] = captions
    return {
        KEY: f"{number:08d}".encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
        "png": noise_png(number, size),
        "txt": "\n".join(captions).encode(),
    }


def write_images(
    folder: Path,
    of_pictures: list[list[str]],
    *,
    size: int = 8,
    per_shard: int = 3,
    first_number: int = 0,
    **settings: Any,
) -> Manifest:
    """Write image shards, a picture of noise per list of captions."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [
        image_sample(first_number + number, of_picture, size=size)
        for number, of_picture in enumerate(of_pictures)
    ]
    shards: list[Shard] = []
    for index, first in enumerate(range(0, len(samples), per_shard)):
        path = folder / shard_name("images", index)
        part = iter(samples[first : first + per_shard])
        shard = write_shard(path, part, members=("json", "png", "txt"))
        assert shard is not None
        shards.append(shard)
    manifest = Manifest(
        kind="image",
        shards=tuple(shards),
        settings={
            **image_settings(image_size=size, image_format="png"),
            "captions": "all",
            **settings,
        },
        lineage={},
    )
    write_manifest(folder, manifest)
    return manifest
