"""Lines reach the file in order, whatever the disk says in between."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ernie_vilg.storage.jsonl import LineFile


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_lines_are_added_to_those_of_before(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"one": 1}\n')

    file = LineFile(path)
    file.append({"zwei": "二"})
    file.close()

    assert path.read_text(encoding="utf-8") == '{"one": 1}\n{"zwei": "二"}\n'


def test_what_a_full_disk_does_not_take_follows_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40 << 10))
    file = LineFile(small_disk / "lines")
    records = [{"number": number, "text": "x" * 1000} for number in range(60)]

    for record in records[:40]:  # 40 KiB, where there is room for 24
        file.append(record)
    written = (small_disk / "lines").read_text()
    ballast.unlink()
    for record in records[40:]:
        file.append(record)
    file.close()

    assert len(written) < 25 << 10
    lines = (small_disk / "lines").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, not per line
    assert "No space left on device" in caplog.text
