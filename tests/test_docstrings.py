"""The house rules on docstrings, and on the size of functions, files and folders."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ernie_vilg", "launch", "data_pipelines")

OPENINGS = ("Of", "What", "That", "For", "Which", "By", "Whoever", "How", "Where", "When")
"""First words of inverted sentences: a docstring opens with its subject or a noun phrase."""
MAX_OPENINGS = 10
MAX_FUNCTION_LINES, MAX_FILE_LINES = 40, 400
LONG_FUNCTIONS: set[str] = set()
"""Functions that are tables, such as "launch/report.py: rows"."""
MAX_FILES, MAX_SHARE = 20, 0.13
MANY_FILES = {"ernie_vilg/config", "launch"}
"""Folders that may have more files: one for each kind of settings, one for each program."""
MAX_TRAINING_FILES, MAX_TRAINING_LINES = 16, 2200

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of all docstrings, those of attributes and constants included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text.strip()


def inverted(tree: ast.Module) -> list[tuple[int, str]]:
    """Return the docstrings that open with one of `OPENINGS`."""
    found = []
    for line, text in docstrings(tree):
        first = text.split(maxsplit=1)[0] if text else ""
        if first.rstrip(":,.") in OPENINGS:
            found.append((line, text.splitlines()[0]))
    return found


def num_lines(function: Function) -> int:
    """Return the lines of a function from its `def` on, its docstring apart."""
    assert function.end_lineno is not None
    count = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        count -= docstring.end_lineno - docstring.lineno + 1
    return count


def long_functions(path: Path) -> Iterator[str]:
    """Yield the functions of a file that have too many lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function) and num_lines(node) > MAX_FUNCTION_LINES:
            yield f"{path.relative_to(ROOT)}: {node.name}"


def lines_by_folder() -> Counter[str]:
    """Return the lines of each folder's own files."""
    count: Counter[str] = Counter()
    for path in sources():
        count[str(path.parent.relative_to(ROOT))] += lines_of(path)
    return count


def test_docstrings_open_with_their_subject() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sources()
        for line, text in inverted(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert len(found) <= MAX_OPENINGS, f"{len(found)} docstrings:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param('"""What it holds."""', id="module"),
        pytest.param('class A:\n    """Of a run."""', id="class"),
        pytest.param('class A:\n    size: int\n    """By rank."""', id="attribute"),
        pytest.param('SIZE = 1\n"""That of a rank."""', id="constant"),
        pytest.param('def f():\n    """\n    Which one.\n    """', id="function, second line"),
        pytest.param('if True:\n    def f():\n        """For ranks."""', id="nested"),
    ],
)
def test_all_kinds_of_docstrings_are_found(source: str) -> None:
    assert len(inverted(ast.parse(source))) == 1


def test_other_openings_and_strings_are_no_finding() -> None:
    source = '"""Formats of files."""\nname = "Of a run"\nprint("What")\n'

    assert inverted(ast.parse(source)) == []


def test_a_docstring_counts_as_no_line_of_its_function() -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'

    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert num_lines(function) == 2


def test_functions_fit_a_screen() -> None:
    found = {name for path in sources() for name in long_functions(path)}

    assert found == LONG_FUNCTIONS


def test_files_are_short() -> None:
    found = {str(path.relative_to(ROOT)): lines_of(path) for path in sources()}

    assert {name: count for name, count in found.items() if count > MAX_FILE_LINES} == {}


def test_benchmarks_keep_to_the_same_sizes() -> None:
    files = sorted((ROOT / "benchmarks").rglob("*.py"))

    assert [str(path) for path in files if lines_of(path) > MAX_FILE_LINES] == []
    assert [name for path in files for name in long_functions(path)] == []


def test_folders_have_few_files() -> None:
    count = Counter(str(path.parent.relative_to(ROOT)) for path in sources())

    found = {name: number for name, number in count.items() if number > MAX_FILES}
    assert found.keys() <= MANY_FILES, found


def test_no_folder_has_a_large_share_of_the_lines() -> None:
    count = lines_by_folder()
    total = count.total()

    shares = {name: f"{own / total:.1%}" for name, own in count.items() if own > MAX_SHARE * total}
    assert shares == {}


def test_training_is_one_loop() -> None:
    files = list((ROOT / "ernie_vilg/training").glob("*.py"))

    assert len(files) <= MAX_TRAINING_FILES
    assert sum(map(lines_of, files)) <= MAX_TRAINING_LINES
