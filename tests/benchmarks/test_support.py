"""Results say what is reached, runs alternate, and a failed process says why."""

from pathlib import Path

import pytest

from benchmarks.support import tables
from benchmarks.support.measurer import Measurer, answers_within, ask_all, started_ranks
from benchmarks.support.results import Requirement, commit, hardware, output_path, write_results
from benchmarks.support.timing import alternate
from ernie_vilg.storage.json_files import read_json


@pytest.mark.parametrize(
    ("value", "is_lower_better", "expected"),
    [
        pytest.param(5.0, False, "reached, 1.00 x", id="at a lower bound"),
        pytest.param(4.0, False, "NOT REACHED, 0.80 x", id="below a lower bound"),
        pytest.param(5.0, True, "NOT REACHED, 1.00 x", id="at an upper bound"),
        pytest.param(4.0, True, "reached, 1.25 x", id="below an upper bound"),
        pytest.param(-1.0, True, "reached", id="a growth that is none"),
    ],
)
def test_a_requirement_says_whether_it_is_reached(
    value: float, is_lower_better: bool, expected: str
) -> None:
    requirement = Requirement(
        what="this", value=value, bound=5.0, unit="s", is_lower_better=is_lower_better
    )

    assert requirement.line().endswith(f": {expected}")


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    with (
        Measurer("loader_parts.resumed") as measurer,
        pytest.raises(RuntimeError, match=r"has no manifest\.json"),
    ):
        measurer.ask({"folder": str(tmp_path), "batch_size": 4, "num_workers": 0})


def test_a_task_that_fails_ends_its_row_with_the_error(tmp_path: Path) -> None:
    task = {"folder": str(tmp_path), "batch_size": 4, "num_workers": 0}

    (row,) = answers_within("loader_parts.resumed", task, limit_seconds=120)

    assert row["failed"].startswith("ernie_vilg.errors.InputError: ")


def test_a_task_over_its_limit_ends_its_row_with_the_limit() -> None:
    (row,) = answers_within("loader_parts.resumed", {}, limit_seconds=0)

    assert row == {"failed": "not done after 0 s"}


def test_a_rank_that_fails_ends_the_whole_job(tmp_path: Path) -> None:
    with (
        started_ranks("plan_memory_parts.rank", 2) as ranks,
        pytest.raises(RuntimeError, match="StopIteration"),
    ):
        ask_all(ranks, {"row": "no such row"})

    assert all(rank.wait() != 0 for rank in ranks)


def test_runs_alternate_and_the_first_only_warms_up() -> None:
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return len(order)

    found = alternate({"a": lambda: run("a"), "b": lambda: run("b")}, repeats=2)

    assert order == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [4, 6]}


def test_results_name_their_commit_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    write_results("anything", [1], quick=True, device="a card")

    assert read_json(output_path("anything", quick=True)) == {
        "commit": commit(),
        "hardware": hardware("a card"),
        "results": [1],
    }
    assert hardware("a card").startswith("a card, ")


def test_a_table_is_markdown() -> None:
    assert tables.header(["a", "b"]) == "| a | b |\n|---|---|"
    assert tables.row(["1", "2"]) == "| 1 | 2 |"
