"""A program that is killed goes on where it was, and its shards are the same bytes."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image

from data_pipelines.building.build import build_image_shards, inspect_share
from data_pipelines.building.finish import finish
from data_pipelines.ray_tasks import software
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import remove

NUM_PAIRS = 12


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return 12 pairs, of which one is faulty, in a folder of their own."""
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(NUM_PAIRS):
        name = f"images/{number}.png"
        Image.new("RGB", (8, 8), (20 * number,) * 3).save(folder / name)
        lines.append(json.dumps({"image": name, "caption": f"第{number}张"}))
    lines[5] = "no JSON"
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def config(source: Path, name: str, **settings: Any) -> BuildShardsConfig:
    defaults: dict[str, Any] = {
        "image_size": 4,
        "samples_per_shard": 4,
        "rows_per_part": 4,
        "max_faulty_fraction": 0.3,
        "hold_out_fraction": 0.3,
    }
    return BuildShardsConfig(
        source=str(source), output_dir=str(source.parent / name), **{**defaults, **settings}
    )


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


_KILLED = """
import os, signal, sys
from pathlib import Path
from data_pipelines.building import records
from ernie_vilg.config.shards import BuildShardsConfig
import json

original, name = records.write_bytes, sys.argv[2]
def write_or_die(path, content, **settings):
    if path.name == f"{name}.json":
        os.kill(os.getpid(), signal.SIGKILL)
    original(path, content, **settings)
records.write_bytes = write_or_die
from data_pipelines.building.build import build_image_shards
build_image_shards(BuildShardsConfig(**json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("killed_at", "finished"),
    [
        pytest.param("part-00001", {"part-00000"}, id="while it inspects"),
        pytest.param("train-00001", {"part-00000", "part-00002", "select"}, id="while it writes"),
    ],
)
def test_a_killed_program_goes_on_to_the_same_bytes(
    source: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str, finished: set[str]
) -> None:
    build_image_shards(config(source, "undisturbed"))
    settings = config(source, "killed")
    words = {
        name: getattr(settings, name)
        for name in ("source", "output_dir", "image_size", "samples_per_shard", "rows_per_part",
                     "max_faulty_fraction", "hold_out_fraction")
    }  # fmt: skip

    done = subprocess.run(
        [sys.executable, "-c", _KILLED, json.dumps(words), killed_at],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    assert done.returncode == -signal.SIGKILL
    records = source.parent / ".building-killed" / "records"
    assert finished <= {path.stem for path in records.glob("*.json")}
    times = {name: (records / f"{name}.json").stat().st_mtime_ns for name in finished}
    rewritten: list[str] = []

    def compare(*arguments: Any) -> None:
        now = {name: (records / f"{name}.json").stat().st_mtime_ns for name in finished}
        rewritten.extend(name for name in finished if now[name] != times[name])
        finish(*arguments)

    monkeypatch.setattr("data_pipelines.building.build.finish", compare)
    build_image_shards(settings)
    assert rewritten == []
    assert hashes(source.parent / "killed") == hashes(source.parent / "undisturbed")
    assert not (source.parent / ".building-killed").exists()


def test_shares_of_the_parts_are_inspected_apart_and_the_rest_follows(source: Path) -> None:
    build_image_shards(config(source, "whole"))

    shares = [
        inspect_share(config(source, "shared", num_parts=2, part_index=index)) for index in (0, 1)
    ]
    assert [(share.rows, dict(share.rejected)) for share in shares] == [
        (8, {}),
        (4, {"not_json": 1}),
    ]
    assert not (source.parent / "shared").exists()

    build_image_shards(config(source, "shared"))
    assert hashes(source.parent / "shared") == hashes(source.parent / "whole")


def test_a_changed_source_or_setting_uses_nothing_of_the_earlier_work(source: Path) -> None:
    inspect_share(config(source, "out", part_index=0))
    with pytest.raises(InputError, match=r"another job \(with another image_size\): end the"):
        inspect_share(config(source, "out", part_index=0, image_size=2))
    captions = source / "captions.jsonl"
    captions.write_text(captions.read_text().replace(json.dumps("第0张"), '"a"'))
    with pytest.raises(InputError, match="work on an earlier state of the sources"):
        inspect_share(config(source, "out", part_index=0))

    build_image_shards(config(source, "out"))

    build_image_shards(config(source, "undisturbed"))
    assert hashes(source.parent / "out") == hashes(source.parent / "undisturbed")


class KilledError(BaseException):
    """A kill in the middle of an operation."""


@pytest.mark.parametrize("number", [1, 6, 11])
def test_a_program_killed_after_the_folder_has_its_name_says_what_it_did(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    removed: list[Path] = []

    def remove_or_die(path: Path) -> None:
        removed.append(path)
        if len(removed) == number:
            raise KilledError
        remove(path)

    monkeypatch.setattr("data_pipelines.work_folder.remove", remove_or_die)
    with suppress(KilledError):
        build_image_shards(config(source, "out"))
    monkeypatch.undo()
    before = hashes(source.parent / "out")
    assert len(removed) == number  # of 10 entries, and then of the rest of the work folder

    report = build_image_shards(config(source, "out"))

    assert (report.counts.rows, report.counts.kept) == (12, 11)
    assert hashes(source.parent / "out") == before
    assert sorted(path.name for path in source.parent.iterdir()) == ["out", "source"]


def test_a_prepared_picture_that_changed_is_refused(source: Path) -> None:
    inspect_share(config(source, "out", part_index=0))
    pictures = source.parent / ".building-out" / "pictures" / "part-00000.bin"
    content = bytearray(pictures.read_bytes())
    content[40] ^= 1
    pictures.write_bytes(content)

    with pytest.raises(InputError, match=r"part-00000\.bin changed after it was written"):
        build_image_shards(config(source, "out"))


def test_work_of_another_package_is_not_mixed_with_new_work(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inspect_share(config(source, "out", part_index=0))
    versions = {**software(), "pillow": "1.0"}
    monkeypatch.setattr("data_pipelines.building.job.software", lambda: versions)
    with pytest.raises(InputError, match=r"sources or models \(package pillow\): end the"):
        inspect_share(config(source, "out", part_index=0))

    build_image_shards(config(source, "out"))

    assert "begin again: package pillow changed since the work in" in caplog.text
    assert "were done already" not in caplog.text


@pytest.mark.parametrize("step", ["inspect.write_rows", "relate.select", "write.write_shard"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        duckdb.IOException("IO Error: Could not write all bytes: No space left on device"),
    ],
    ids=["system", "database"],
)
def test_a_full_disk_is_told_and_the_next_start_goes_on(
    source: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"data_pipelines.building.{step}", fail)
    with pytest.raises(InputError, match=r"the disk of .*\.building-out is full.*make room, then"):
        build_image_shards(config(source, "out"))
    monkeypatch.undo()

    report = build_image_shards(config(source, "out"))

    assert (report.counts.rows, report.counts.kept) == (12, 11)
