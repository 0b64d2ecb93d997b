"""Every kind of damage fails the check that is there for it, and no other one."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from data_pipelines.audit.audit import Audit, audit_shards
from data_pipelines.audit.checks import Outcome
from data_pipelines.metadata import parquet_files
from data_pipelines.shard_writer import write_shard
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.data.shards.open_shards import Sample, read_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.shard_manifest import read_manifest, write_manifest
from tests.data_pipelines.audit.made import (
    CAPTIONS,
    encode,
    metadata_rows,
    picture,
    sample,
    write_all,
    write_curation,
    write_images,
    write_metadata,
)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_all(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "set")
    return tmp_path / "set"


def audit(folder: Path, **settings: Any) -> Audit:
    names = {
        "image_shards": "images",
        "token_shards": "tokens",
        "text_tokenizer_dir": "text",
        "image_tokenizer_dir": "vqgan",
    }
    given = {name: str(folder / place) for name, place in names.items()}
    config = AuditShardsConfig(**{**given, "output_dir": "unused", **settings})
    return audit_shards(config, folder)


def failed(found: Audit) -> dict[str, str]:
    """Return the first problem of every failed check."""
    return {check.name: check.problems[0] for check in found.failed}


def outcomes(found: Audit) -> dict[str, Outcome]:
    return {check.name: check.outcome for check in found.checks}


def flip_a_bit(path: Path, at: int = 700) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path, number: int, change: Callable[[list[Sample]], None]) -> None:
    """Change the samples of a shard, and describe the shard in the manifest as it then is."""
    kind = "token" if folder.name == "tokens" else "image"
    manifest = read_manifest(folder, kind)
    shard = manifest.shards[number]
    samples = read_shard(folder, shard)
    change(samples)
    written = write_shard(folder / shard.file, samples, members=tuple(sorted(samples[0]))[1:])
    assert written is not None
    shards = [*manifest.shards]
    shards[number] = written
    write_manifest(folder, replace(manifest, shards=tuple(shards)))


def changed_images(folder: Path, captions: Mapping[str, Any], **changed: Sample) -> None:
    """Write image shards again, and the token shards of them."""
    write_images(folder / "images", {**CAPTIONS, **captions}, changed)
    encode(folder)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def changed_rows(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Write the metadata again, and the counts of them."""
    rows = metadata_rows(CAPTIONS)
    change(rows)
    write_metadata(folder / "images", rows)
    write_curation(folder / "images", rows)


def set_of(samples: list[Sample], at: int, **members: bytes) -> None:
    samples[at] = {
        **samples[at],
        **{name.replace("_", "."): value for name, value in members.items()},
    }


def test_a_sound_set_passes_every_check(folder: Path) -> None:
    found = audit(folder, text_length=20)

    assert found.failed == []
    assert outcomes(found) == {
        check.name: Outcome.NOT_CHECKED if check.name == "drift" else Outcome.PASSED
        for check in found.checks
    }


def lose_a_shard(folder: Path) -> None:
    (folder / "images" / "images-00001.tar").unlink()


def damage_the_index(folder: Path) -> None:
    flip_a_bit(folder / "images" / "images-00001.tar.index", -1)


def damage_held_out(folder: Path) -> None:
    flip_a_bit(folder / "images" / "held_out" / "images-00000.tar")


def wrong_index(folder: Path) -> None:
    """Write an index that is well formed and described in the manifest, of another tar file."""
    rewrite(folder / "images", 0, lambda samples: set_of(samples, 0, txt="红色的三角形".encode()))
    old = (folder / "images" / "images-00000.tar.index").read_bytes()
    write_images(folder / "images", CAPTIONS)
    (folder / "images" / "images-00000.tar.index").write_bytes(old)
    from ernie_vilg.storage.shard_manifest import describe_file

    manifest = read_manifest(folder / "images", "image")
    first = manifest.shards[0]
    index = describe_file(folder / "images" / "images-00000.tar.index")
    write_manifest(
        folder / "images",
        replace(manifest, shards=(replace(first, index=index), *manifest.shards[1:])),
    )
