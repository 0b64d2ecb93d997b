"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from ernie_vilg.storage import files
from ernie_vilg.storage.files import (
    commit_folder,
    committed_folder,
    sha256_of_file,
    sha256_of_json,
    write_bytes,
    write_json,
)
from ernie_vilg.storage.json_files import read_json


def test_the_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")

    # FIPS 180-2, appendix B.1.
    assert sha256_of_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_file_longer_than_a_block_is_hashed_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1_000_000 + b"b" * 1_000_000)
    (tmp_path / "b").write_bytes(b"a" * 1_000_000 + b"b" * 999_999 + b"c")

    assert sha256_of_file(tmp_path / "a") != sha256_of_file(tmp_path / "b")


def test_the_hash_of_json_does_not_depend_on_the_order_of_keys() -> None:
    assert sha256_of_json({"a": 1, "b": [2, 3]}) == sha256_of_json({"b": [2, 3], "a": 1})
    assert sha256_of_json({"a": 1, "b": [2, 3]}) != sha256_of_json({"a": 1, "b": [3, 2]})


def test_json_comes_back_and_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"caption": "红辣椒"})

    assert read_json(tmp_path / "a.json") == {"caption": "红辣椒"}
    assert "红辣椒" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        read_json(path)


def test_a_writer_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")

    assert path.read_bytes() == b"old"


def test_a_folder_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with committed_folder(path) as temporary:
        (temporary / "a").write_text("a")
        assert not path.exists()

    assert (path / "a").read_text() == "a"
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"]


def test_an_error_in_the_block_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), committed_folder(tmp_path / "folder"):
        raise KeyError

    assert not (tmp_path / "folder").exists()


def test_what_a_killed_writer_left_is_not_mixed_in(tmp_path: Path) -> None:
    def write_half() -> None:
        with committed_folder(tmp_path / "folder") as temporary:
            (temporary / "stale").write_text("")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    with committed_folder(tmp_path / "folder") as temporary:
        (temporary / "fresh").write_text("")

    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["fresh"]


def test_an_existing_folder_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")

    with pytest.raises(ValueError, match="already exists"), committed_folder(path):
        pass
    assert (path / "old").exists()

    with committed_folder(path, replace=True) as temporary:
        (temporary / "new").write_text("")
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_commit_that_fails_before_the_rename_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "folder", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "name").write_text(folder.name)

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        commit_folder(new, old)

    assert (old / "name").read_text() == "folder"


def test_the_only_writer_of_a_file_does_not_list_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a folder with a million files would be listed")

    monkeypatch.setattr("os.scandir", fail)
    for content in (b"old", b"new"):
        write_bytes(tmp_path / "record.json", content, is_only_writer=True)
    monkeypatch.undo()

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"record.json": b"new"}
