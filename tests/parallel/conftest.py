"""Prints the parity table at the end, and writes it to outputs/parity.md."""

from pathlib import Path
from typing import Any

from tests.parallel.parity import RELATIVE_TOLERANCE, Row

_TABLE = Path(__file__).parents[2] / "outputs" / "parity.md"
_HEADER = (
    "tensor",
    "pipeline",
    "data",
    "ZeRO",
    "attention",
    "reconstructor",
    "checkpointing",
    "sequence parallel",
    "further",
    "largest difference",
    "equal",
)
_rows: list[tuple[str, ...]] = []


def record_row(row: Row, difference: float) -> None:
    """Add a line to the table."""
    variant = row.variant
    words = (variant.extra, "offload" * variant.offload, "groups" * variant.has_groups)
    further = " ".join(word for word in words if word)
    cells = (
        *row.layout,
        variant.zero,
        variant.attention,
        variant.reconstructor,
        variant.checkpointing,
        "yes" if variant.sequence_parallel else "",
        further,
        f"{difference:.0e}",
        "yes" if difference <= RELATIVE_TOLERANCE else "NO",
    )
    _rows.append(tuple(str(cell) for cell in cells))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table in the form of docs/parity.md."""
    if not _rows:
        return
    widths = [max(map(len, column)) for column in zip(_HEADER, *_rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (_HEADER, tuple("-" * width for width in widths), *_rows)
    ]
    equal = sum(row[-1] == "yes" for row in _rows)
    terminalreporter.section("parity with one process: losses and gradient norms of 4 steps")
    for line in lines:
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"{equal} of {len(_rows)} rows equal to 1e-5")
    _TABLE.parent.mkdir(exist_ok=True)
    _TABLE.write_text("\n".join(lines) + "\n")
