"""Programs replace their own outputs only."""

from pathlib import Path

import pytest

from data_pipelines.outputs import output_folder

MARKER = "manifest.json"


def write(path: Path, *, overwrite: bool) -> None:
    with output_folder(path, overwrite=overwrite, marker=MARKER) as folder:
        (folder / MARKER).write_text("new")


def test_the_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with output_folder(path, overwrite=False, marker=MARKER) as folder:
        (folder / MARKER).write_text("new")
        assert not path.exists()

    assert (path / MARKER).read_text() == "new"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with output_folder(tmp_path / "out", overwrite=False, marker=MARKER) as folder:
            (folder / MARKER).write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()

    assert list(tmp_path.iterdir()) == []


def test_an_earlier_output_stays_unless_overwrite_is_set(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("old")

    with pytest.raises(ValueError, match="already exists: set overwrite=true"):
        write(tmp_path, overwrite=False)
    assert (tmp_path / MARKER).read_text() == "old"

    write(tmp_path, overwrite=True)
    assert (tmp_path / MARKER).read_text() == "new"


def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(ValueError, match="did not write it and will not delete it"):
        write(tmp_path, overwrite=True)

    assert (tmp_path / "thesis.tex").read_text() == "years of work"
