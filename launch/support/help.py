"""The text of --help: every setting of a program with its docstring, type and default.

It reads the schema only, so it works without any option.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from ernie_vilg.config.schema import Matching, Range, declared, non_null, source_of
from launch.support.choices import choices_of, groups_of

_WIDTH = 100
_INDENT = " " * 6


def help_text(name: str, schema: type, summary: str) -> str:
    """Return what --help prints.

    Args:
        name: program name.
        schema: dataclass of the program's settings.
        summary: docstring of the program.
    """
    lines = [f"ernie-vilg {name} KEY=VALUE ...", f"python launch/{name}.py KEY=VALUE ..."]
    lines += ["", inspect.cleandoc(summary)]
    groups = list(_group_lines(name))
    if groups:
        lines += ["", "Groups of settings, chosen by name from conf/:", *groups]
    lines += ["", "Settings:"]
    for key, hint, default, docstring in settings_of(schema):
        lines.append(f"  {key}: {_type_words(hint)}{default}")
        lines += _wrapped(docstring)
    lines += ["", "--cfg job prints the settings that a command line makes."]
    return "\n".join(lines)


def settings_of(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """Yield key, type, default as text and docstring of every setting, in the order of fields."""
    docstrings, plain = attribute_docstrings(schema), typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = plain[field.name]
        part = non_null(hint)
        is_section = dataclasses.is_dataclass(part)
        if not is_section or part is not hint:
            docstring = docstrings.get(field.name, "")
            declaration = declared(schema)[field.name]
            source = source_of(declaration)
            default = f", follows {source}" if source else _default(field)
            yield prefix + field.name, declaration, default, docstring
        if is_section:
            yield from settings_of(typing.cast(type, part), f"{prefix}{field.name}.")
        elif typing.get_origin(part) is dict and dataclasses.is_dataclass(
            section := typing.get_args(part)[1]
        ):
            yield from settings_of(typing.cast(type, section), f"{prefix}{field.name}.NAME.")


@functools.cache
def attribute_docstrings(schema: type) -> dict[str, str]:
    """Return the attribute docstrings of a class and its bases by attribute name."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return found


def _group_lines(name: str) -> Iterator[str]:
    for group, chosen in groups_of(name).items():
        choices = choices_of(group)
        default = "required" if chosen == "???" else f"default {chosen or 'none'}"
        yield f"  {group}={', '.join(choices)} ({default})"
        for choice, sentence in choices.items():
            yield from _wrapped(f"{choice}: {sentence}", _INDENT + "  ")


def _wrapped(text: str, later: str = _INDENT) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ", required"
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple | dict):
        value = "{}" if value == {} else f"[{','.join(map(str, value))}]"
    elif value is None or isinstance(value, bool):
        value = words[value]
    return f" = {value}"


def _type_words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        patterns = [fact.words for fact in arguments[1:] if isinstance(fact, Matching)]
        if patterns:
            return patterns[0]
        facts = "".join(f" {fact}" for fact in arguments[1:] if isinstance(fact, Range))
        return f"{_type_words(arguments[0])}{facts}"
    if origin in (types.UnionType, typing.Union):
        return f"{_type_words(non_null(hint))}, or null"
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {_type_words(arguments[0])}"
    if origin is dict:
        return f"{_type_words(arguments[1])} by name"
    words = {str: "text", int: "whole number", float: "number", bool: "true | false"}
    return words.get(hint, "settings")
