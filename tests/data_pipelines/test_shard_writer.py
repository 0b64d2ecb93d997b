"""Shards are plain tar files, the same bytes for the same samples."""

import io
import tarfile
from pathlib import Path

import pytest

from data_pipelines.shard_writer import write_shard
from ernie_vilg.data.shards.open_shards import KEY


@pytest.mark.parametrize("key", ["00000000", "a" * 94, "folder/" + "b" * 120])
def test_a_shard_is_what_tarfile_writes(tmp_path: Path, key: str) -> None:
    contents = {"png": b"x" * 700, "txt": "\u7ea2".encode(), "json": b""}
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(contents):
            member = tarfile.TarInfo(f"{key}.{name}")
            member.size, member.mode = len(contents[name]), 0o444
            member.uname = member.gname = "ernie_vilg"
            archive.addfile(member, io.BytesIO(contents[name]))

    shard = write_shard(
        tmp_path / "s.tar", [{KEY: key.encode(), **contents}], members=("txt", "png", "json")
    )

    assert shard is not None
    assert (tmp_path / "s.tar").read_bytes() == expected.getvalue()
    assert {path.name for path in tmp_path.iterdir()} == {"s.tar", "s.tar.index"}
