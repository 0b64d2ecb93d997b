"""Small token shards, written with WebDataset's own writer."""

import io
import json
from pathlib import Path

import numpy as np
import webdataset

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.storage.shard_manifest import Manifest, write_manifest

MEMBERS = ("codes.npy", "json", "text.npy")

MODEL = ModelConfig(
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    text_vocab_size=64,
    text_length=3,
    codebook_size=64,
    image_grid_size=2,
)
"""A model for the first 60 samples of `write_token_shards`."""


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_token_shards(
    folder: Path, sizes: list[int], *, grid: int = 2, lineage: dict[str, str] | None = None
) -> Manifest:
    """Write shards whose samples all differ: the k-th has codes [k, ...] and text [k + 4]."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, number = [], 0
    for index, size in enumerate(sizes):
        path = folder / f"tokens-{index:05d}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for _ in range(size):
                writer.write(
                    {
                        "__key__": f"{number:08d}",
                        "codes.npy": npy(np.full((grid, grid), number, dtype=np.uint16)),
                        "text.npy": npy(np.array([number + 4], dtype=np.int32)),
                        "json": json.dumps({"caption": str(number)}).encode(),
                    }
                )
                number += 1
        shards.append(describe_shard(path, samples=size, members=MEMBERS))
    manifest = Manifest(
        kind="token", shards=tuple(shards), settings={"grid_size": grid}, lineage=lineage or {}
    )
    write_manifest(folder, manifest)
    return manifest


def sequence_of(
    folder: Path,
    manifest: Manifest,
    model: ModelConfig,
    *,
    seed: int = 0,
    shuffle_block_shards: int = 2,
    quarantine: Quarantine | None = None,
    loader: LoaderConfig | None = None,
    with_pixels: bool = False,
) -> TokenSequence:
    """Return the sequence of one data set, read by no workers unless a loader says otherwise."""
    return TokenSequence(
        sources=(DataSource(name="main", location=str(folder), manifest=manifest),),
        mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
        seed=seed,
        shuffle_block_shards=shuffle_block_shards,
        quarantine=quarantine or Quarantine(),
        loader=loader or LoaderConfig(num_workers=0),
        model=model,
        with_pixels=with_pixels,
    )
