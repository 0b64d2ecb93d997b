"""A lock on a file or folder is held by one process, or shared by several."""

import os
from pathlib import Path

from ernie_vilg.storage.locks import locked


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with locked(tmp_path / "file") as first, locked(tmp_path / "file") as second:
        assert (first, second) == (True, False)
    with locked(tmp_path / "file") as later:
        assert later is True


def test_a_shared_lock_is_held_by_several(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with (
        locked(tmp_path / "file", shared=True) as first,
        locked(tmp_path / "file", shared=True) as second,
        locked(tmp_path / "file") as alone,
    ):
        assert (first, second, alone) == (True, True, False)


def test_a_file_that_its_holder_has_removed_is_not_locked(tmp_path: Path) -> None:
    with locked(tmp_path / "file") as is_locked:
        assert is_locked is False
    assert not os.path.lexists(tmp_path / "file")
