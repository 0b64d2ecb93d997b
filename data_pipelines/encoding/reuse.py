"""Codes of earlier token shards, taken over where only the text tokenizer changes.

The result is byte for byte that of encoding the pictures again. Earlier shards must therefore
come from the same image shards, image tokenizer and settings; their bytes are checked against their
manifest. Of an image shard only the captions are read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_pipelines.encoding.task import EncodingTask, TokenCounts
from ernie_vilg.data.batches.npy import parse_npy
from ernie_vilg.data.batches.pictures import PICTURE_MEMBERS
from ernie_vilg.data.shards.open_shards import LocalFolder, OpenShard, Sample, open_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import parse_json
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest

_REPRODUCED = ("precision", "pixels", "views")
"""Settings of earlier token shards that must be those asked for."""


def check_reusable(
    folder: Path, lineage: Mapping[str, str], settings: Mapping[str, Any], images: Manifest
) -> Manifest:
    """Return the manifest of earlier token shards whose codes can be taken over.

    Args:
        folder: the earlier token shards.
        lineage: lineage of the token shards to write.
        settings: settings of the token shards to write.
        images: manifest of the image shards.

    Raises:
        InputError: they are of another image tokenizer, other image shards or other settings.
    """
    old = read_manifest(folder, "token")
    pairs = {
        name: (old.lineage.get(name), value)
        for name, value in lineage.items()
        if name != "text_tokenizer"
    }
    older = {"precision": "fp32", "pixels": False, "views": 1}  # before these could be set
    for name in _REPRODUCED:
        pairs[name] = (old.settings.get(name, older[name]), settings[name])
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise InputError(
                f"codes_from={folder} has {name}={found}, and {wanted} is asked for: its codes are "
                "not those that encoding would give; use the same settings and shards, or leave "
                "out codes_from"
            )
    samples = [shard.samples for shard in images.shards for _ in range(settings["views"])]
    if samples != [shard.samples for shard in old.shards]:
        raise InputError(f"codes_from={folder} has other numbers of samples: leave out codes_from")
    return old


def open_captions(task: EncodingTask) -> OpenShard:
    """Open an image shard of which only captions are read.

    Shards of launch/build_shards.py hold their captions twice, so that their other bytes need not
    be read for the shard's hash.
    """
    folder = LocalFolder(str(task.source))
    return open_shard(folder, task.shard, with_content=not task.settings.has_captions_twice)


class OldCodes:
    """The codes of an earlier token shard; a context manager."""

    def __init__(self, task: EncodingTask) -> None:
        """Open the shard and check it.

        Raises:
            DamagedShardError: it differs from its manifest.
        """
        assert task.codes_folder is not None
        assert task.codes_shard is not None
        self._task = task
        self._opened = open_shard(LocalFolder(str(task.codes_folder)), task.codes_shard)
        self._is_checked = not task.settings.has_captions_twice
        pictures = [name for name in PICTURE_MEMBERS if name in task.codes_shard.members]
        self.picture_member = tuple(pictures) if task.settings.keep_pixels else ()
        """Extension of the pictures that its samples keep, if they keep any."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the shard."""
        self._opened.file.close()

    def samples(self, images: OpenShard, counts: TokenCounts) -> Iterator[Sample]:
        """Yield the members of each sample that come from its picture, and count its codes.

        Raises:
            InputError: the samples are not those of the image shard.
        """
        for index in range(self._task.shard.samples):
            if self._opened.key(index) != images.key(index):
                raise InputError(
                    f"codes_from: {self._opened.describe(index)} stands where "
                    f"{images.describe(index)} does: leave out codes_from"
                )
            if (problem := self._opened.problem(index)) is not None:
                raise problem
            names = ("codes.npy", "json", *self.picture_member)
            members = {name: self._opened.member(name, index) for name in names}
            counts.add_codes(self._codes(members["codes.npy"], index))
            if not self._is_checked and _captions_in(members["json"]) != _lines(images, index):
                self._check_images(images)
            yield members

    def _codes(self, content: bytes, index: int) -> np.ndarray:
        grid = self._task.settings.grid_size
        codes = parse_npy(content)
        if codes.shape != (grid, grid) or codes.dtype != np.uint16:
            raise InputError(
                f"codes_from: {self._opened.describe(index)} has codes of shape {codes.shape} in "
                f"{codes.dtype}: leave out codes_from"
            )
        if codes.max() >= self._task.settings.codebook_size:
            raise InputError(
                f"codes_from: {self._opened.describe(index)} has the code {codes.max()} of "
                f"{self._task.settings.codebook_size}: leave out codes_from"
            )
        return codes

    def _check_images(self, images: OpenShard) -> None:
        """Check the whole image shard, whose captions its JSON does not confirm.

        Raises:
            DamagedShardError: it differs from its manifest.
        """
        open_shard(LocalFolder(str(self._task.source)), images.shard).file.close()
        self._is_checked = True


def captions_stand_twice(images: Manifest) -> bool:
    """Return whether image shards hold captions in their JSON too, and have indexes."""
    return "captions" in images.settings and all(shard.index is not None for shard in images.shards)


def _captions_in(content: bytes) -> list[Any]:
    """Return the captions in the JSON of a sample; none where it is malformed."""
    try:
        record = parse_json(content, "its JSON")
    except InputError:
        return []
    if not isinstance(record, dict):
        return []
    captions = record.get("captions")
    return captions if isinstance(captions, list) else [record.get("caption")]


def _lines(images: OpenShard, index: int) -> list[str] | None:
    """Return the lines of a sample's txt; None where it is no text."""
    try:
        return images.member("txt", index).decode().split("\n")
    except (KeyError, UnicodeDecodeError):
        return None
