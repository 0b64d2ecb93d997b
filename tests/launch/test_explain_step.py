"""The program that explains a step: from a run folder to a page."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.drills.data_set import make_data_set
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER
from tests.forensics.past_run import consume, run_config


def explain(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(CONF_FOLDER.parent / "launch/explain_step.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def test_a_run_with_relative_paths_is_explained_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config(Path("here"), make_data_set(Path("data")))
    consume(config, range(1, 3))
    (tmp_path / "there").mkdir()

    done = explain(tmp_path / "there", f"run={tmp_path}/here/run", "step=2")

    output = tmp_path / "here/run/explained/step_00000002.html"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{output}: open it in a browser",
        "step 2: positions 8 to 15, certain",
    ]
    assert "<h1>Step 2 of " in output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("step=0", "step=0: must be at least 1"),
        ("max_samples=0", "max_samples=0: must be at least 1"),
        ("setp=1", "setp"),
    ],
)
def test_wrong_setting_is_refused(word: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        compose_program("explain_step", ["run=r", "step=1", word])


def test_moved_shards_are_named_on_the_command_line() -> None:
    words = ["run=r", "step=1", "+token_shards.main=/a", "+token_shards.b=s3://c/d"]

    config = compose_program("explain_step", words)

    assert config.token_shards == {"main": "/a", "b": "s3://c/d"}
