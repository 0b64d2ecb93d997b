"""Command-line options as typed, written in Hydra's grammar.

Hydra converts a value before it looks at the schema: `run_dir=1e-4` becomes "0.0001", and a
bracket, a comma or an equals sign in a text is a syntax error. This module knows the schema and
quotes each value for Hydra's parser, so a setting keeps what was typed.

Source: the grammar of Hydra 1.3 (https://hydra.cc/docs/advanced/override_grammar/basic) and the
interpolations of OmegaConf 2.3.
"""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ernie_vilg.config.schema import FORMER_NAMES, non_null
from ernie_vilg.errors import InputError

_OPTION = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=]+)(?P<equals>=)?(?P<value>.*)", re.DOTALL)
_QUOTED = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.DOTALL)
_ELEMENT = re.compile(rf"\s*({_QUOTED.pattern})\s*(?=,|\Z)|[^,]*", re.DOTALL)
_PIECE = re.compile(rf"(?<=[:,{{\[])\s*(?:{_QUOTED.pattern})(?=\s*(?:[,}}\]]|\Z))|.", re.DOTALL)
"""A character, or a quotation at the beginning of an element; an apostrophe within an element is
only a character."""
_BRACKETS = ("[]", "{}")


def hydra_overrides(options: Sequence[str], schema: type) -> list[str]:
    """Return the options of a command line in Hydra's grammar.

    Args:
        options: as typed, such as `training.steps=5`.
        schema: dataclass of the program's settings.

    Raises:
        InputError: an option is no setting, or is ambiguous; the message shows how to write it.
    """
    return [_override(option, schema) for option in options]


def in_optional_sections(options: Sequence[str], schema: type) -> list[str]:
    """Return the options that set a key of a section that may be null."""

    def is_optional(section: str) -> bool:
        hint = _type_of(section, schema)
        return non_null(hint) is not hint

    keys = {option: option.partition("=")[0].lstrip("+").split(".") for option in options}
    return [
        option
        for option, parts in keys.items()
        if any(is_optional(".".join(parts[:count])) for count in range(1, len(parts)))
    ]


def known_settings(schema: type) -> str:
    """Return the names of a section's settings, for the message about another name."""
    names = dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else ()
    return f"it has {', '.join(field.name for field in names)}" if names else ""


def _override(option: str, schema: type) -> str:
    match = _OPTION.fullmatch(option)
    if match is None or option.startswith("-"):
        raise InputError(f"{option}: write settings as key=value; --help lists them")
    sign, key, equals, value = match.groups(default="")
    if key.split(".")[0].split("/")[0] == "hydra":
        if key == "hydra.searchpath" and not sign:
            return option
        if key == "hydra/launcher" or key.startswith("hydra.launcher."):
            raise InputError(
                f"{key}: this is for the jobs of a sweep: add --multirun, or leave it out"
            )
        raise InputError(f"{key}: this is a setting of Hydra, not of the program: leave it out")
    hint = _type_of(key, schema)
    if not sign and _is_mapping(hint):
        sign = "++"  # Hydra accepts new keys only after a plus
    if sign == "~":
        return _removal(option, key, schema)
    if not equals:
        raise InputError(f"{key} has no value: write {key}=VALUE; --help lists the settings")
    written = _value(key, value, hint)
    mapping = _mapping_of_sections(key, schema)
    if mapping:
        # Hydra makes new entries, and keeps the others, only where it merges into the mapping.
        sign, inner = "++", key[len(mapping) + 1 :].split(".")
        key, written = mapping, written or _quoted("")
        for name in reversed(inner):
            written = f"{{{name}:{written}}}"
    return f"{sign}{key}={written}"


def _mapping_of_sections(key: str, schema: type) -> str | None:
    """Return the mapping of sections that has a key, `sources` for `sources.web.location`."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        mapping = ".".join(parts[:count])
        hint = non_null(_type_of(mapping, schema))
        if _is_mapping(hint) and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            return mapping
    return None


def _removal(option: str, key: str, schema: type) -> str:
    if not _is_mapping(_type_of(key.rpartition(".")[0], schema)):
        raise InputError(f"{option}: a setting cannot be removed: leave it out, or give it a value")
    return option


def _type_of(key: str, schema: type) -> Any:
    """Return the type of a setting; None for a key that only Hydra knows, such as a group."""
    first, *parts = key.split(".")
    hints = typing.get_type_hints(schema)
    hint: Any = hints.get(first.partition("[")[0])
    if hint is None:
        if FORMER_NAMES.get(first) in hints:
            raise InputError(f"{first} is now {FORMER_NAMES[first]}: --help lists the settings")
        return None
    for part in parts:
        section = non_null(hint)
        if dataclasses.is_dataclass(section):
            hint = typing.get_type_hints(section).get(part.partition("[")[0])
            if hint is None:
                kind = typing.cast(type, section)
                renamed = f"it is now {FORMER_NAMES[part]}; " if part in FORMER_NAMES else ""
                raise InputError(
                    f"Key '{part}' not in '{kind.__name__}': {renamed}{known_settings(kind)}"
                )
        elif _is_mapping(section):
            hint = typing.get_args(section)[1]
        else:
            raise InputError(f"{key}: this is one value, without keys: give all of it")
    if "[" in key:
        raise InputError(f"{key}: a list has no keys: give all of it")
    return hint


def _is_mapping(hint: Any) -> bool:
    origin = typing.get_origin(non_null(hint))
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _value(key: str, value: str, declared_hint: Any) -> str:
    hint = non_null(declared_hint)
    is_text = hint is str or typing.get_origin(hint) is typing.Literal
    is_texts = hint == tuple[str, ...]
    if not (is_text or is_texts) and "${" in value:
        raise InputError(f"{key}={value}: a setting does not refer to another one: write the value")
    is_section = dataclasses.is_dataclass(hint)
    is_group = "." not in key and (hint is None or is_section)
    if value == "null" and not is_group:
        return value
    if not value or _QUOTED.fullmatch(value):
        return _without_interpolation(value)
    if is_section and hint is not declared_hint and value[0] == "{":
        raise InputError(f"{key}={value}: this section comes from a file of conf/, not from braces")
    is_bracketed = value[0] + value[-1] in _BRACKETS
    if is_texts or (is_group and value[0] + value[-1] == "[]"):
        return _list(key, value)
    if hint in (int, float, bool) or is_text:
        if is_bracketed:
            raise InputError(
                f"{key}={value}: one value belongs here, no list; if the brackets are part of it, "
                f"quote it: '{key}={_quoted(value)}'"
            )
        return _quoted(value)
    if value[0] + value[-1] == "{}" and (is_section or _is_mapping(hint)):
        return _braces(key, value, hint)
    return value if is_bracketed else _quoted(value)


def _braces(key: str, value: str, hint: Any) -> str:
    """Quote the texts in the braces of a section or mapping."""
    parts, depth = [""], 0
    for piece in _PIECE.findall(f",{value[1:-1]}")[1:]:
        depth += (piece in ("[", "{")) - (piece in ("]", "}"))
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    pairs = [part.partition(":") for part in parts] if value[1:-1].strip() else []
    if depth or not all(name.strip() and colon for name, colon, _ in pairs):
        raise InputError(
            f"{key}={value}: write {{NAME:VALUE,NAME:VALUE}}, close every bracket, and quote a "
            "value with commas or brackets of its own"
        )
    types = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
    written = []
    for raw_name, _, text in pairs:
        name = raw_name.strip()
        part = types.get(name) if types else typing.get_args(hint)[1]
        written.append(f"{name}:{_value(f'{key}.{name}', text.strip(), part) or _quoted('')}")
    return f"{{{','.join(written)}}}"


def _list(key: str, value: str) -> str:
    """Quote the elements of a list of texts."""
    if value[0] + value[-1] != "[]":
        raise InputError(f"{key}={value}: a list belongs here: '{key}=[{_quoted(value)}]'")
    elements = [element.strip() for element in _elements(value[1:-1])]
    if elements == [""]:
        return "[]"
    is_doubtful = [
        not _QUOTED.fullmatch(element) and (not element or element != raw or " " in element)
        for element, raw in zip(elements, _elements(value[1:-1]), strict=True)
    ]
    if len(elements) > 1 and any(is_doubtful):
        several = ",".join(_quoted_once(element) for element in elements)
        raise InputError(
            f"{key}={value}: a comma begins another element, unless it is quoted. Write "
            f"'{key}=[{_quoted(value[1:-1])}]' for one, '{key}=[{several}]' for {len(elements)}"
        )
    return f"[{','.join(_quoted_once(element) for element in elements)}]"


def _elements(text: str) -> Iterator[str]:
    start = 0
    while start <= len(text):
        match = _ELEMENT.match(text, start)
        assert match is not None  # the pattern also matches the empty text
        yield match[0]
        start = match.end() + 1


def _quoted_once(element: str) -> str:
    if _QUOTED.fullmatch(element):
        return _without_interpolation(element)
    return _quoted(element)


def _quoted(value: str) -> str:
    """Quote a text for Hydra, which interprets backslashes only before a quotation mark."""
    escaped = re.sub(
        r'(\\*)("|\Z)', lambda match: match[1] * 2 + "\\" * len(match[2]) + match[2], value
    )
    return f'"{_without_interpolation(escaped)}"'


def _without_interpolation(text: str) -> str:
    r"""Escape `${` for OmegaConf, which interprets backslashes only before it."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
