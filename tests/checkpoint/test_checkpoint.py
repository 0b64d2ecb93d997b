"""A checkpoint exists when it is committed, and is used when it verifies."""

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.checkpoint.folder import (
    MANIFEST_NAME,
    committed_checkpoints,
    newest_checkpoint,
    verify_checkpoint,
)
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import sha256_of_file
from tests.checkpoint.checkpoint_runs import (
    IDENTITY,
    LAYOUT,
    FakeEngine,
    checkpoints_of,
    restored,
    save,
    saved_run,
)

pytestmark = pytest.mark.usefixtures("alone")

WEIGHTS = "state/weights_0.pt"


def test_an_empty_run_starts_at_zero_with_a_checkpoint(tmp_path: Path) -> None:
    assert restored(tmp_path, asynchronous=True) == (0, 0)
    assert verify_checkpoint(tmp_path / "checkpoints" / "step_00000000") is None


def test_the_newest_is_restored_and_old_ones_are_removed(tmp_path: Path) -> None:
    saved_run(tmp_path)

    assert restored(tmp_path) == (20, 20)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "latest.json",
        "step_00000010",
        "step_00000020",
    ]


def test_the_step_orders_checkpoints_not_the_clock(tmp_path: Path) -> None:
    """A machine whose clock is an hour behind wrote the newest one."""
    saved_run(tmp_path)
    an_hour_ago = time.time() - 3600
    os.utime(RunFolder(tmp_path).checkpoint(20), (an_hour_ago, an_hour_ago))

    assert restored(tmp_path) == (20, 20)


def test_steps_beyond_eight_digits_are_still_ordered(tmp_path: Path) -> None:
    saved_run(tmp_path, steps=(0, 99_999_999, 100_000_000))

    assert [path.name for path in committed_checkpoints(tmp_path)] == [
        "step_100000000",
        "step_99999999",
    ]


def test_what_is_saved_with_a_step_comes_back_exactly(tmp_path: Path) -> None:
    checkpoints = saved_run(tmp_path)
    save(checkpoints, 30, state={"mean": 0.1 + 0.2, "skips": [3, 5]})
    checkpoints.finish()

    again, engine = checkpoints_of(tmp_path), FakeEngine()
    again.restore(engine)  # type: ignore[arg-type]

    assert again.restored_state == {"mean": 0.1 + 0.2, "skips": [3, 5]}
    assert again.last_step == 30


def test_going_back_finds_the_last_checkpoint(tmp_path: Path) -> None:
    """The last checkpoint may still be in the writer."""
    checkpoints, engine = saved_run(tmp_path, asynchronous=True), FakeEngine()
    save(checkpoints, 30)
    engine.state = 35

    step = checkpoints.reload(engine)  # type: ignore[arg-type]

    assert (step, engine.state) == (30, 30)


def flip_bit(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES = [
    pytest.param(lambda folder: flip_bit(folder / WEIGHTS), WEIGHTS, id="flipped bit"),
    pytest.param(lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS, id="missing file"),
    pytest.param(lambda folder: (folder / WEIGHTS).write_text(""), WEIGHTS, id="empty file"),
    pytest.param(
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]),
        WEIGHTS,
        id="truncated file",
    ),
    pytest.param(
        lambda folder: shutil.copy(folder / "state/moments_0.pt", folder / WEIGHTS),
        WEIGHTS,
        id="another file in its place",
    ),
    pytest.param(
        lambda folder: (folder / "state/layer_00.pt").write_text("hostile"),
        "state/layer_00.pt",
        id="a file too many, which DeepSpeed might load",
    ),
    pytest.param(lambda folder: (folder / MANIFEST_NAME).unlink(), MANIFEST_NAME, id="no manifest"),
    pytest.param(
        lambda folder: (folder / MANIFEST_NAME).write_text("{"), MANIFEST_NAME, id="bad manifest"
    ),
    pytest.param(
        lambda folder: (folder / MANIFEST_NAME).write_text("[]"), MANIFEST_NAME, id="no object"
    ),
    pytest.param(
        lambda folder: rewrite_manifest(folder, files=[]), MANIFEST_NAME, id="foreign manifest"
    ),
    pytest.param(
        lambda folder: rewrite_manifest(folder, format_version=1), "format_version", id="old form"
    ),
]


@pytest.mark.parametrize(("damage", "named"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_skipped(
    tmp_path: Path, damage: Any, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved_run(tmp_path)
    damage(RunFolder(tmp_path).checkpoint(20))

    assert restored(tmp_path) == (10, 10)
    assert named in caplog.text
    assert newest_checkpoint(tmp_path) == RunFolder(tmp_path).checkpoint(10)


def test_twenty_flipped_bits_are_found_twenty_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The bits are anywhere in any file, including the manifest."""
    saved_run(tmp_path)
    folder = RunFolder(tmp_path).checkpoint(20)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random_places = random.Random(0)
    for number in range(20):
        file = files[number % len(files)]
        content = file.read_bytes()
        flip_bit(file, random_places.randrange(len(content)))
        caplog.clear()

        assert restored(tmp_path) == (10, 10)
        assert file.name in caplog.text

        file.write_bytes(content)
    assert restored(tmp_path) == (20, 20)


def test_a_renamed_checkpoint_is_not_of_the_step_it_claims(tmp_path: Path) -> None:
    saved_run(tmp_path)
    RunFolder(tmp_path).checkpoint(20).rename(RunFolder(tmp_path).checkpoint(30))

    assert restored(tmp_path) == (10, 10)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    checkpoints = saved_run(tmp_path)
    flip_bit(RunFolder(tmp_path).checkpoint(20) / WEIGHTS)

    save(checkpoints, 20)

    assert verify_checkpoint(RunFolder(tmp_path).checkpoint(20)) is None


@pytest.mark.parametrize(
    "pointer",
    [
        pytest.param(None, id="missing"),
        pytest.param("", id="empty"),
        pytest.param("\x00garbage", id="garbage"),
        pytest.param('{"step": 0, "folder": "step_00000000"}', id="stale"),
        pytest.param('{"step": 90, "folder": "step_00000090"}', id="to nowhere"),
    ],
)
def test_the_pointer_is_for_people_alone(tmp_path: Path, pointer: str | None) -> None:
    """A run never silently falls back to step 0."""
    saved_run(tmp_path)
    path = tmp_path / "checkpoints" / "latest.json"
    assert json.loads(path.read_text()) == {"step": 20, "folder": "step_00000020"}
    path.unlink()
    if pointer is not None:
        path.write_text(pointer)

    assert restored(tmp_path) == (20, 20)


def test_a_half_written_checkpoint_does_not_exist(tmp_path: Path) -> None:
    saved_run(tmp_path)
    folder = tmp_path / "checkpoints"
    RunFolder(tmp_path).checkpoint(20).rename(folder / ".writing-step_00000020")
    shutil.copytree(RunFolder(tmp_path).checkpoint(10), folder / ".removing-step_00000000")

    assert restored(tmp_path) == (10, 10)
    assert not list(folder.glob(".*"))


def test_a_run_whose_checkpoints_are_all_bad_is_not_started_again(tmp_path: Path) -> None:
    """None of its files changes."""
    saved_run(tmp_path)
    for step in (10, 20):
        flip_bit(RunFolder(tmp_path).checkpoint(step) / WEIGHTS)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    before = [(path, sha256_of_file(path)) for path in files]

    with pytest.raises(ValueError, match="holds a run but no checkpoint of it that verifies"):
        restored(tmp_path)

    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert [(path, sha256_of_file(path)) for path in files] == before


def test_a_run_that_lost_its_checkpoints_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")

    with pytest.raises(ValueError, match="holds a run but no checkpoint of it that verifies"):
        restored(tmp_path)


def test_other_settings_are_listed_and_refused(tmp_path: Path) -> None:
    saved_run(tmp_path)

    with pytest.raises(ValueError, match=r"model: \{'hidden_size': 16\} in the checkpoint, .*32"):
        restored(tmp_path, identity={"model": {"hidden_size": 32}})


def test_fresh_weights_fit_every_layout(tmp_path: Path) -> None:
    saved_run(tmp_path, steps=(0,))
    engine: Any = FakeEngine()
    engine.load = None  # must not be called

    checkpoints = checkpoints_of(tmp_path, layout={"zero_stage": 3})

    assert checkpoints.restore(engine) == 0
    manifest = json.loads((RunFolder(tmp_path).checkpoint(0) / MANIFEST_NAME).read_text())
    assert manifest["layout"] == {"zero_stage": 3}


def test_the_manifest_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    saved_run(tmp_path)

    manifest = json.loads((RunFolder(tmp_path).checkpoint(20) / MANIFEST_NAME).read_text())

    assert [(entry["file"], entry["rank"]) for entry in manifest["files"]] == [
        ("state/moments_0.pt", 0),
        (WEIGHTS, 0),
    ]
    assert manifest["step"] == 20
    assert manifest["identity"] == IDENTITY
    assert manifest["layout"] == LAYOUT
    assert manifest["data"] == {"position": 20}
    assert manifest["config_hash"] == "of all settings"
    assert sorted(manifest["versions"]) == [
        "deepspeed",
        "ernie-vilg",
        "megatron-core",
        "python",
        "torch",
    ]
