"""Small image shards for the tests of this folder and of the program."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.storage.shard_manifest import Manifest, write_manifest


def write_image_shards(
    folder: Path, *, sizes: tuple[int, ...], side: int, damaged: tuple[int, ...] = ()
) -> list[np.ndarray]:
    """Write shards of random pictures of few colours.

    Args:
        folder: folder to create.
        sizes: samples per shard.
        side: pixels per side.
        damaged: numbers of pictures whose files are cut short, counted over all shards.

    Returns:
        the pictures, uint8 [side, side, 3] each.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    pictures: list[np.ndarray] = []
    shards = []
    for number, count in enumerate(sizes):
        path = folder / f"images-{number:05d}.tar"
        with tarfile.open(path, "w") as archive:
            for _ in range(count):
                coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
                pixels = coarse.repeat(side // 4, axis=0).repeat(side // 4, axis=1)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                content = buffer.getvalue()
                if len(pictures) in damaged:
                    content = content[: len(content) // 2]
                member = tarfile.TarInfo(f"{len(pictures):06d}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                pictures.append(pixels)
        shards.append(describe_shard(path, samples=count, members=("png",)))
    settings = {"image_size": side}
    write_manifest(
        folder, Manifest(kind="image", shards=tuple(shards), settings=settings, lineage={})
    )
    return pictures
