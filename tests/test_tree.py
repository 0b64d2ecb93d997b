"""The trees, the floors and the map in the documents are those of the code."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ernie_vilg", "launch", "data_pipelines")
DOCUMENTS = [
    str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
]
NO_PACKAGES = {"templates"}
"""Folders inside packages that hold no code."""

_TREE = re.compile(r"^## The tree$.*?^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMES = re.compile(r"( *)((?:[\w.-]+/ )*[\w.-]+(?:/|\.py))(?= |$)")
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def section(document: str, title: str) -> str:
    """Return the text of a section of a document, its subsections included."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", read(document), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{document} has no section {title}"
    return found[1]


def paths_of_tree(text: str) -> list[str]:
    """Return the paths that a document's tree names; two spaces of indentation are one level."""
    tree = _TREE.search(text)
    assert tree is not None, "the document has no tree"
    parents: list[str] = []
    found = []
    for line in tree[1].splitlines():
        names = _NAMES.match(line)
        assert names is not None, f"no name in: {line}"
        level = len(names[1]) // 2
        parents = parents[:level]
        for name in names[2].split():
            found.append("".join([*parents, name]))
        parents.append(names[2].split()[-1])
    return found


def tracked_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(name) for name in done.stdout.split("\0") if name]


def folders() -> set[str]:
    """Return the folders that a tree must name: of the repository, its packages and `conf`."""
    found = set()
    for path in tracked_files():
        *above, _ = path.parts
        if not above or above[0].startswith(".") or NO_PACKAGES.intersection(above):
            continue
        depth = len(above) if above[0] in (*PACKAGES, "conf") else 1
        found |= {"/".join(above[:level]) + "/" for level in range(1, depth + 1)}
    return found


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_the_tree_names_every_folder_once(document: str) -> None:
    named = paths_of_tree(read(document))

    assert sorted(set(named)) == sorted(named), "a folder is named twice"
    assert {name for name in named if name.endswith("/")} == folders()
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_tree_is_read_by_its_indentation() -> None:
    text = "## The tree\n\n```\na/   one\n  b/ c/   two\n    d.py\ne/\n```\n"

    assert paths_of_tree(text) == ["a/", "a/b/", "a/c/", "a/c/d.py", "e/"]


def test_the_floors_are_those_of_the_contract() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = [
        {name.strip().removeprefix("ernie_vilg.") for name in layer.split("|")}
        for layer in contracts[0]["layers"]
    ]

    rows = [
        (int(floor), set(re.findall(r"`(\w+)`", packages)))
        for floor, packages in re.findall(
            r"^\| (\d+) \|([^|]*)\|", read("docs/architecture.md"), re.MULTILINE
        )
    ]

    assert rows == list(zip(range(len(layers), 0, -1), layers, strict=True))


def test_every_package_stands_on_a_floor() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    named = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}

    modules = {f"ernie_vilg.{path.stem}" for path in (ROOT / "ernie_vilg").glob("*.py")}
    packages = {f"ernie_vilg.{path.parent.name}" for path in ROOT.glob("ernie_vilg/*/__init__.py")}
    assert named == (modules | packages | set(PACKAGES)) - {"ernie_vilg", "ernie_vilg.__init__"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_the_document_exist(document: str) -> None:
    first = {name.partition("/")[0] for name in folders()}

    paths = [path for path in _PATH.findall(read(document)) if path.split("/")[0] in first]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_map_names_files_and_tests_of_four_changes() -> None:
    changes = section("CONTRIBUTING.md", "Map of the commonest changes").split("\n### ")[1:]

    assert len(changes) == 4
    for change in changes:
        steps, _, tests = change.partition("Tests: ")
        assert len(_PATH.findall(steps)) >= 4
        assert len(_PATH.findall(tests)) >= 3


def test_the_readme_fits_two_hundred_lines() -> None:
    num_lines = len(read("README.md").splitlines())

    assert num_lines <= 200
