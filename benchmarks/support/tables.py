"""Markdown tables, as docs/ has them."""

from collections.abc import Iterable, Sequence


def row(cells: Iterable[str]) -> str:
    """Return one row."""
    return f"| {' | '.join(cells)} |"


def header(names: Sequence[str]) -> str:
    """Return the header of a table and the line below it."""
    return f"{row(names)}\n{'|---' * len(names)}|"
