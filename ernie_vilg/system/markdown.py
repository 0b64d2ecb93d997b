"""Tables of Markdown, for the cards of tokenizers."""

from collections.abc import Mapping
from typing import Any


def markdown_table(values: Mapping[str, Any], *, otherwise: str) -> list[str]:
    """Return the lines of a table of two columns, names and values.

    Args:
        values: the rows.
        otherwise: the only line if there are no rows.
    """
    if not values:
        return [otherwise]
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return ["| what | value |", "|---|---|", *rows]


def _cell(value: Any) -> str:
    """Return a value as the content of one cell."""
    listed = list(value) if isinstance(value, tuple) else value
    return f"{listed}".replace("|", "\\|").replace("\n", " ")
