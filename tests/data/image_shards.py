"""Small image shards whose pictures say where each of their pixels came from."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.image_batches import ImageSequence
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.storage.shard_manifest import Manifest, write_manifest


def numbered_png(number: int, size: int) -> bytes:
    """Return a picture that is red by its number, green by row and blue by column."""
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[..., 0] = number
    pixels[..., 1] = np.arange(size)[:, None]
    pixels[..., 2] = np.arange(size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_image_shards(
    folder: Path, shards: Sequence[Sequence[bytes]], *, image_size: int, extension: str = "png"
) -> Manifest:
    """Write shards of these files, keys counting through them, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, number = [], 0
    for shard_index, files in enumerate(shards):
        path = folder / f"images-{shard_index:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for content in files:
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                number += 1
        entries.append(describe_shard(path, samples=len(files), members=(extension,)))
    manifest = Manifest(
        kind="image", shards=tuple(entries), settings={"image_size": image_size}, lineage={}
    )
    write_manifest(folder, manifest)
    return manifest


def images_of(
    folder: Path,
    manifest: Manifest,
    *,
    image_size: int | None = None,
    seed: int = 3,
    horizontal_flip: bool = False,
    for_training: bool = True,
    cache_bytes: int = 0,
    quarantine: Quarantine | None = None,
    loader: LoaderConfig | None = None,
) -> ImageSequence:
    """Return the sequence of a folder: whole pictures, no workers, unless told otherwise."""
    return ImageSequence(
        sources=(DataSource(name="main", location=str(folder), manifest=manifest),),
        mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
        seed=seed,
        shuffle_block_shards=2,
        quarantine=quarantine or Quarantine(),
        loader=loader or LoaderConfig(num_workers=0),
        image_size=image_size or int(manifest.settings["image_size"]),
        horizontal_flip=horizontal_flip,
        for_training=for_training,
        cache_bytes=cache_bytes,
    )
