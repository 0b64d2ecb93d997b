"""HTML pages from jinja2 templates, one file each.

A page embeds its pictures, holds no script and loads nothing, so it can be mailed and opened
without a network. A room that writes pages keeps its templates in its folder `templates`; each
extends `page.html` of this room and may import the macros of `parts.html`. Every value is escaped.
"""

import base64
import unicodedata
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from ernie_vilg.vocabulary import readable

_MAX_CHARACTERS = 1000
_INVISIBLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_ZERO_WIDTH_JOINER = "\u200d"
"""Character that joins several emoji into one; `visible` keeps it."""


def render(package: str, template: str, /, **values: Any) -> str:
    """Return a page.

    Args:
        package: name of the package whose folder `templates` holds the template.
        template: file name of the template.
        values: everything that the template names; a name without a value is an error.
    """
    return _environment(package).get_template(template).render(values)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("ernie_vilg.evaluation")]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    environment.filters["data_address"] = data_address
    return environment


def data_address(content: bytes, media_type: str = "image/png") -> str:
    """Return a file's content as a `data:` address, for the `src` of a picture."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def visible(text: str) -> str:
    """Return text from outside in a form that hides nothing.

    Invisible characters and those that turn the direction of writing are spelled out, and a long
    text is cut. A question and its answer are named. The template escapes the result.
    """
    text = readable(text)
    cut = text[:_MAX_CHARACTERS]
    spelled = "".join(
        character
        if unicodedata.category(character) not in _INVISIBLE or character == _ZERO_WIDTH_JOINER
        else ascii(character)[1:-1]
        for character in cut
    )
    rest = f" (and {len(text) - len(cut)} characters more)" if len(cut) < len(text) else ""
    return spelled + rest
