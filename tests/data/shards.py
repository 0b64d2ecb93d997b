"""Small token shards, written with WebDataset's own writer."""

import io
import json
from pathlib import Path

import numpy as np
import webdataset

from ernie_vilg.manifest import Manifest, describe_shard, write_manifest

MEMBERS = ("codes.npy", "json", "text.npy")


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
