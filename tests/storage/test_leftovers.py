"""Leftovers of killed writers are removed or recovered, and those of living ones stay."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ernie_vilg.storage.files import (
    clear_leftovers,
    committed_folder,
    put_folder,
    scratch_folder,
    write_bytes,
)
from ernie_vilg.storage.literal_paths import path_without_pattern


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, as a living writer does."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def folder_with(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "name").write_text(content)
    return path


def test_leftovers_of_every_type_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-latest.json").write_text("{")
    (tmp_path / ".writing-link").symlink_to("nowhere")
    os.mkfifo(tmp_path / ".writing-pipe")
    folder_with(tmp_path / ".writing-folder", "half")
    folder_with(tmp_path / ".removing-folder", "half")

    clear_leftovers(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_what_a_living_writer_holds_stays(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / ".writing-folder", "half")

    with locked(folder):
        clear_leftovers(tmp_path)

    assert (folder / "name").read_text() == "half"


def test_a_kill_between_two_renames_loses_no_folder(tmp_path: Path) -> None:
    folder_with(tmp_path / ".replaced-folder", "old")
    (tmp_path / "folder").mkdir()  # an empty one, made meanwhile

    clear_leftovers(tmp_path)

    assert (tmp_path / "folder" / "name").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_old_folder_stands_until_the_new_one_has_its_name(tmp_path: Path) -> None:
    """The next commit after such a kill must not begin by removing the old one."""
    folder_with(tmp_path / ".replaced-folder", "old")

    with pytest.raises(FileNotFoundError):
        put_folder(tmp_path / "missing", tmp_path / "folder")

    assert (tmp_path / "folder" / "name").read_text() == "old"


def test_a_folder_that_another_process_writes_is_refused_and_kept(tmp_path: Path) -> None:
    other = folder_with(tmp_path / ".writing-folder", "half")

    with (
        locked(other),
        pytest.raises(ValueError, match="is being written by another process"),
        committed_folder(tmp_path / "folder"),
    ):
        pass

    assert (other / "name").read_text() == "half"


def test_a_link_in_the_place_of_the_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    precious = folder_with(tmp_path / "precious", "kept")
    (tmp_path / ".writing-folder").symlink_to(precious)

    with committed_folder(tmp_path / "folder") as folder:
        (folder / "name").write_text("new")

    assert (precious / "name").read_text() == "kept"
    assert (tmp_path / "folder" / "name").read_text() == "new"


def test_files_and_folders_within_get_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with committed_folder(tmp_path / "folder") as folder:
            (folder / "inner").mkdir(mode=0o700)
            (folder / "inner" / "file").touch(mode=0o600)
    finally:
        os.umask(before)

    assert (tmp_path / "folder" / "inner").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "folder" / "inner" / "file").stat().st_mode & 0o777 == 0o644


def test_a_link_is_not_committed(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"link is neither a file nor a folder"),
        committed_folder(tmp_path / "folder") as folder,
    ):
        (folder / "link").symlink_to("nowhere")

    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_s_scratch_folder_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    folder_with(tmp_path / ".writing-try-0123abcd", "killed")
    unrelated = folder_with(tmp_path / ".writing-try-again", "other")

    with scratch_folder(tmp_path, "try") as living:
        with scratch_folder(tmp_path, "try") as second:
            assert sorted(tmp_path.iterdir()) == sorted([living, second, unrelated])
        assert living.is_dir()

    assert list(tmp_path.iterdir()) == [unrelated]


def test_many_writers_of_one_file_all_succeed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ernie_vilg.storage.files import write_bytes\n"
        "for _ in range(100): write_bytes(Path(sys.argv[1]), b'whole' * 100)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    writers = [subprocess.Popen(command) for _ in range(3)]

    assert [writer.wait() for writer in writers] == [0, 0, 0]
    write_bytes(tmp_path / "file", b"last")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_path_without_pattern_leads_to_the_folder(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a[b]*?", "here")

    with path_without_pattern(folder) as path:
        assert not set("[]*?") & set(path)
        assert (Path(path) / "name").read_text() == "here"
