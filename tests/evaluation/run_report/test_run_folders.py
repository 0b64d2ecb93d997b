"""Places name run folders, alone or by patterns; anything else is refused in one sentence."""

from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.charts import MOST_LINES
from ernie_vilg.evaluation.run_report.run_folders import run_folders, short_names


def run_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text("{}")
    return path


def test_a_pattern_names_the_run_folders_that_match(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / f"sweep/rate={rate}") for rate in ("1e-3", "3e-4")]
    (tmp_path / "sweep/wandb").mkdir()
    (tmp_path / "sweep/sweep.tsv").touch()
    other = run_folder(tmp_path / "other")

    assert run_folders([str(other), f"{tmp_path}/sweep/*"]) == [other, *runs]


def test_a_folder_with_signs_of_patterns_in_its_name_is_itself(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "steps=[1]")

    assert run_folders([str(run)]) == [run]


def test_two_names_of_one_run_are_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (tmp_path / "link").symlink_to(run)

    with pytest.raises(InputError, match=rf"one run twice, as {run} and as {tmp_path}/link"):
        run_folders([str(run), str(tmp_path / "link")])


def test_more_runs_than_a_chart_tells_apart_are_refused(tmp_path: Path) -> None:
    for index in range(MOST_LINES + 1):
        run_folder(tmp_path / f"run{index:02d}")

    assert len(run_folders([f"{tmp_path}/run0*"])) == 10
    with pytest.raises(InputError, match=r"13 runs: a chart tells 12 lines apart.*sweep\.html"):
        run_folders([f"{tmp_path}/*"])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        pytest.param("nothing", "is not a folder: name the run_dir", id="missing"),
        pytest.param("no*", "no run folder matches .*no", id="pattern without a match"),
        pytest.param("empty", r"has no run\.json: name the run_dir of launch", id="another folder"),
        pytest.param("sweep", r"name them, as in 'runs=\[.*sweep/\*\]'", id="a sweep"),
    ],
)
def test_what_is_no_run_folder_is_refused(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "sweep/a=1")

    with pytest.raises(InputError, match=message):
        run_folders([str(tmp_path / place)])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        pytest.param(["/a/quickstart/pretrain"], ["quickstart/pretrain"], id="one"),
        pytest.param(["/a/x/pretrain", "/a/y/pretrain"], ["x", "y"], id="a part in the middle"),
        pytest.param(["/a/s/r=1", "/a/s/r=2"], ["r=1", "r=2"], id="the last part"),
        pytest.param(["/a/b", "/a/b/c"], ["b", "c"], id="one inside the other"),
        pytest.param(["/a/b", "/a/b/b"], ["a/b", "a/b/b"], id="names that would be the same"),
    ],
)
def test_names_are_the_parts_in_which_paths_differ(folders: list[str], names: list[str]) -> None:
    assert short_names([Path(folder) for folder in folders]) == names
