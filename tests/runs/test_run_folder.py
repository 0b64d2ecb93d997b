"""The names of a run's files are spelled in run_folder.py only."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from ernie_vilg.runs import run_folder
from ernie_vilg.runs.run_folder import RunFolder, step_in, step_name

ROOT = Path(__file__).parents[2]
OWNER = Path(run_folder.__file__)
PACKAGES = ("ernie_vilg", "launch", "data_pipelines")
SUFFIXES = (".png", ".html", ".txt")
OTHER_FOLDERS = {
    "launch/plan.py": {"plan.json"},
    "launch/jobs/run_job.py": {"metrics.json"},
    "data_pipelines/audit/database.py": {"samples"},
    "data_pipelines/audit/shard_pass.py": {"samples"},
}
"""Equal names in folders that are not a run's, by the module that writes them."""


def names_in(path: Path) -> Iterator[str]:
    """Yield the file names that a module spells: texts with a dot or joined to a path."""
    tree = ast.parse(path.read_text())
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    joined = {
        id(node.right)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        is_name = "." in node.value or id(node) in joined
        if is_name and id(node) not in documents and len(node.value) < 40:
            yield from (part for part in node.value.split("/") if part)


def owned_names() -> set[str]:
    """Return every name that the owner joins to the folder."""
    return {name for name in names_in(OWNER) if name not in SUFFIXES and "*" not in name}


def test_the_names_are_found() -> None:
    assert owned_names() >= {"run.json", "checkpoints", "STOP", "stopped.json", "reports"}


def test_no_other_module_spells_a_name_of_the_run_folder() -> None:
    owned = owned_names()
    modules = itertools.chain(*((ROOT / name).rglob("*.py") for name in PACKAGES))
    spelled = {
        str(path.relative_to(ROOT)): set(names_in(path)) & owned
        for path in modules
        if path != OWNER
    }

    assert {name: names for name, names in spelled.items() if names} == OTHER_FOLDERS


def test_every_name_stands_in_the_table() -> None:
    table = run_folder.__doc__ or ""

    assert {name for name in owned_names() if name not in table} == set()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_00000020", 20),
        ("step_123456789", 123456789),
        ("step_000000020", None),
        ("step_20", None),
        ("step_00000020.png", None),
    ],
)
def test_a_step_is_read_out_of_the_name_that_it_makes(name: str, step: int | None) -> None:
    assert step_in(name) == step
    assert step is None or step_name(step) == name


def test_checkpoints_lie_by_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    assert folder.checkpoint(20) == tmp_path / "checkpoints/step_00000020"
    assert folder.consolidated_checkpoint(20) == tmp_path / "universal/step_00000020"
    assert folder.hang_report(3, 1) == tmp_path / "reports/hang-step_00000003-rank_00001.txt"
