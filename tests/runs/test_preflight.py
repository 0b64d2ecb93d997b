"""A folder that cannot be written is found before step 1."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ernie_vilg.runs.preflight import check_run_folder


@contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    """Refuse every change under a folder, even by root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine refuses mounts: {done.stderr.strip()}")
    try:
        (folder / "checkpoints").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_fresh_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "a" / "run")

    assert list((tmp_path / "a" / "run").iterdir()) == []


def test_a_used_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000002").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before = sorted(tmp_path.rglob("*"))

    check_run_folder(tmp_path)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_folder_is_one_message(tmp_path: Path) -> None:
    with (
        mounted_read_only(tmp_path / "run"),
        pytest.raises(ValueError, match=r"run_dir=.*run cannot be written: Read-only file system"),
    ):
        check_run_folder(tmp_path / "run")


def test_a_read_only_subfolder_is_named(tmp_path: Path) -> None:
    with (
        mounted_read_only(tmp_path / "run" / "checkpoints"),
        pytest.raises(ValueError, match=r"Read-only file system \(.*/run/checkpoints\)"),
    ):
        check_run_folder(tmp_path / "run")


def test_a_file_in_place_of_the_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")

    with pytest.raises(ValueError, match=r"run_dir=.*run cannot be written: File exists"):
        check_run_folder(tmp_path / "run")


def test_the_folder_that_a_link_names_is_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("scratch/run")

    check_run_folder(tmp_path / "link")

    assert (tmp_path / "scratch/run").is_dir()
    assert list((tmp_path / "link").iterdir()) == []


def test_a_probe_of_a_killed_start_is_removed(tmp_path: Path) -> None:
    """A restarted container has the host name and process id of the killed one."""
    probe = tmp_path / ".writing-preflight-0123abcd" / "probe"
    probe.mkdir(parents=True)
    (tmp_path / f".preflight-{os.uname().nodename}-{os.getpid()}").mkdir()

    check_run_folder(tmp_path)

    assert not probe.parent.exists()


def test_starts_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from ernie_vilg.runs.preflight import check_run_folder\n"
        "for _ in range(100): check_run_folder(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    starts = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]

    assert [start.communicate()[1] for start in starts] == ["", "", ""]
    assert list((tmp_path / "run").iterdir()) == []
