"""Cards of tokenizers in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from ernie_vilg import __version__


def card_in_markdown(
    title: str, introduction: str, code: str, sections: Mapping[str, Sequence[str]]
) -> str:
    """Return a card for people: what it is, how it is used, its sections, and our version.

    Args:
        title: heading of the page.
        introduction: paragraph below it.
        code: example of its use, fenced.
        sections: lines of each section by its heading.
    """
    lines = [f"# {title}", "", introduction, "", code, ""]
    for heading, content in sections.items():
        lines += [f"## {heading}", "", *content, ""]
    return "\n".join([*lines, f"Written by ernie_vilg {__version__}."]) + "\n"


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
