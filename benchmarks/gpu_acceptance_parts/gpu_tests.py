"""The tests that need a GPU, in parts of falling value."""

import re
import sys
from collections.abc import Callable

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.programs import run_command
from benchmarks.gpu_acceptance_parts.stages import NotHereError, StageError, figure
from benchmarks.support.measurer import Result
from benchmarks.support.results import ROOT

BLOCK_SPARSE = "tests/model/test_block_sparse.py"
PARITY, MEMORY = "tests/parallel/test_parity.py", "tests/planning/test_memory.py"
FIRST = "bfloat16 or (selective and (row or column))"
"""Kernels of the 10B's masks, and compiled blocks that recompute."""

PARTS = ("kernels", "parity", "the rest", "memory", "other kernels")

_MARK = "pytest.mark.gpu"

_COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
_CHOSEN = re.compile(r"^(\d+)(?:/\d+)? tests? collected")


def words_of(part: str) -> list[str]:
    """Return pytest's words for a part.

    `the rest` names the other files with GPU tests: a rented machine lacks packages that other test
    files import.
    """
    named = {
        "kernels": [BLOCK_SPARSE, "-k", FIRST],
        "parity": [PARITY],
        "memory": [MEMORY],
        "other kernels": [BLOCK_SPARSE, "-k", f"not ({FIRST})"],
    }
    if part in named:
        return named[part]
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if _MARK in path.read_text(encoding="utf-8")
    ]
    return [path for path in files if path not in (BLOCK_SPARSE, PARITY, MEMORY)]


def gpu_tests(part: str) -> Callable[[Context, float], list[Result]]:
    """Return the stage function of a part of the GPU tests."""

    def run(context: Context, limit: float) -> list[Result]:
        words = ["-q", "-p", "no:cacheprovider", "-m", "gpu", *words_of(part)]
        words += [] if context.has_gpu else ["--collect-only"]
        name = f"tests_{part.replace(' ', '_')}"
        code = run_command(context, name, [sys.executable, "-m", "pytest", *words], limit)
        text = context.log(name).read_text(encoding="utf-8", errors="replace")
        return figures_of(part, text, code)

    return run


def figures_of(part: str, text: str, code: int) -> list[Result]:
    """Return the figures of a part from pytest's output.

    Args:
        part: the part.
        text: output of pytest.
        code: its exit status.

    Raises:
        StageError: a test failed, or none ran.
        NotHereError: the tests were only collected.
    """
    lines = text.strip().splitlines() or ["no output"]
    count = {name: int(number) for number, name in _COUNT.findall(lines[-1])}
    chosen = _CHOSEN.search(lines[-1])
    if chosen is not None and code == 0:
        raise NotHereError(f"needs a GPU: {chosen[1]} tests are chosen")
    rows = [figure(f"GPU tests, {part}", count.get("passed", 0), "passed", **count)]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if code or failed or not count.get("passed"):
        raise StageError("; ".join([*failed, lines[-1]]), rows)
    return rows
