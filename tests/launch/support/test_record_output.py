"""A file of records has one writer at a time."""

from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from launch.support.record_output import record_output


def test_a_refused_writer_leaves_the_file_of_the_one_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.jsonl"
    with record_output(path, "output") as first:
        # The second process looks just before the first one makes the file.
        monkeypatch.setattr("os.path.lexists", lambda _: False)
        with (
            pytest.raises(InputError, match="another process is writing"),
            record_output(path, "output"),
        ):
            pass
        first.add({"number": 1})

    assert path.read_text() == '{"number": 1}\n'


def test_a_file_without_a_record_goes_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), record_output(tmp_path / "records.jsonl", "output"):
        raise RuntimeError

    assert list(tmp_path.iterdir()) == []
