"""Pages, plans, drills, jobs and caches are written through links, or refused before the work."""

from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from tests.evaluation.test_report import run as reported
from tests.launch.test_evaluate import folder as judged
from tests.launch.test_output_places import link_to_nothing, run

__all__ = ["judged", "reported"]  # fixtures


def report_words(reported: Path, output: Path) -> list[str]:
    return [
        "title=t", "command=c", f"pretrain_run={reported}/pretrain",
        f"tokenizer_run={reported}/tokenizer", f"evaluation={reported}/evaluation",
        f"stages={reported}", f"output={output}",
    ]  # fmt: skip


def test_a_page_is_written_behind_its_link(reported: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "page.html").symlink_to("scratch/page.html")

    run("report", *report_words(reported, tmp_path / "page.html"))

    assert (tmp_path / "page.html").is_symlink()
    assert (tmp_path / "scratch/page.html").read_text().startswith("<!")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        pytest.param("evaluation", "is a folder: name a file in it", id="a folder"),
        pytest.param("tokenizer/metrics.jsonl/page.html", "Not a directory", id="within a file"),
    ],
)
def test_a_page_that_cannot_be_written_is_found_before_the_work(
    output: str, message: str, reported: Path, tmp_path: Path
) -> None:
    (tmp_path / "evaluation/evaluation.json").unlink()  # not read before the check

    with pytest.raises(InputError, match=f"^output=.*{message}"):
        run("report", *report_words(reported, tmp_path / output))


def test_a_report_of_missing_stages_is_refused(reported: Path, tmp_path: Path) -> None:
    words = [*report_words(reported, tmp_path / "page.html")[:-2], f"stages={tmp_path}/nowhere"]

    with pytest.raises(InputError, match=r"^stages=.*nowhere is not a folder"):
        run("report", *words, f"output={tmp_path}/page.html")


def test_an_evaluation_is_written_behind_its_link(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch/out").mkdir(parents=True)
    value = link_to_nothing(tmp_path)

    run(
        "evaluate", f"weights={judged}/weights", f"pairs={judged}/pairs", f"output_dir={value}",
        "count=1", "batch_size=1",
    )  # fmt: skip

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "scratch/out/evaluation.json").is_file()


@pytest.mark.parametrize("name", ["weights", "pairs"])
def test_an_evaluation_lies_apart_from_what_it_reads(judged: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"lies within {name}="):
        run(
            "evaluate", f"weights={judged}/weights", f"pairs={judged}/pairs",
            f"output_dir={judged}/{name}/out",
        )  # fmt: skip


def test_a_plan_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch import plan

    monkeypatch.setattr(plan, "_learn", None)
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match=r"^plan_dir=.* cannot be written: Not a directory"):
        run(
            "plan", "experiment=base_300m", "num_gpus=8", "gpu=h100-80gb",
            f"plan_dir={tmp_path}/file",
        )  # fmt: skip


def test_a_drill_folder_behind_a_link_is_emptied(tmp_path: Path) -> None:
    from launch.drill import clear

    (tmp_path / "scratch/data/old").mkdir(parents=True)
    (tmp_path / "link").symlink_to("scratch")

    assert clear(f"{tmp_path}/link") == tmp_path / "scratch"
    assert list((tmp_path / "scratch").iterdir()) == []

    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"^drill_dir=.* cannot be written: Not a directory"):
        clear(f"{tmp_path}/file")


def test_a_job_folder_is_made_behind_its_link(tmp_path: Path) -> None:
    from launch.jobs.run_job import MARKER_FILE, owned_folder

    (tmp_path / "link").symlink_to("scratch/job")
    with owned_folder(tmp_path / "link", "job", force=False):
        assert (tmp_path / "scratch/job" / MARKER_FILE).is_file()

    (tmp_path / "file").write_text("kept")
    with (
        pytest.raises(InputError, match=r"^job\.output_dir=.* cannot be written: Not a directory"),
        owned_folder(tmp_path / "file", "job", force=False),
    ):
        pass


def test_a_cache_is_made_behind_its_link(tmp_path: Path) -> None:
    from ernie_vilg.data.shards.shard_cache import ShardCache

    (tmp_path / "link").symlink_to("scratch/cache")

    ShardCache(tmp_path / "link", max_bytes=1, wait_seconds=1)

    assert (tmp_path / "scratch/cache").is_dir()
