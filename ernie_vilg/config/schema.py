"""From JSON values to a frozen dataclass, strictly: the undoing of `dataclasses.asdict`.

Source: ours.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import kind_of

Settings = TypeVar("Settings")

_PLAIN_TYPES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def from_json(content: Any, schema: type[Settings], name: str) -> Settings:
    """Return the dataclass that a JSON object describes.

    Args:
        content: a JSON value. Fields that are not there take their defaults: settings of before
            there was such a field.
        schema: the dataclass; its fields may be plain values, dataclasses, tuples, mappings,
            enumerations, literals and optional.
        name: what the object is, for messages, such as the file it comes from.

    Raises:
        InputError: a value is of another type, a field is unknown, or has no value and no
            default, or a check of the dataclass failed; the message names the key.
    """
    value: Settings = _value(content, schema, name)
    return value


def _value(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        (hint,) = [part for part in arguments if part is not types.NoneType]
        return _value(value, hint, name)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(value, hint, name)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(value, isinstance(value, dict), "an object", name)
        return {key: _value(part, arguments[1], f"{name}.{key}") for key, part in value.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        _require(value, isinstance(value, list | tuple), "a list", name)
        is_tuple = issubclass(origin, tuple) and arguments[1:] != (...,)
        each = arguments if is_tuple else (arguments[0],) * len(value)
        if len(each) != len(value):
            raise InputError(f"{name} has {len(value)} values, not {len(each)}: restore it")
        parts = enumerate(zip(value, each, strict=True))
        values = [_value(part, of, f"{name}[{index}]") for index, (part, of) in parts]
        return values if origin is list else tuple(values)
    if origin is typing.Literal:
        _require(value, value in arguments, f"one of {', '.join(map(repr, arguments))}", name)
        return value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        choices = [member.value for member in hint]
        _require(value, value in choices, f"one of {', '.join(map(repr, choices))}", name)
        return hint(value)
    if hint in _PLAIN_TYPES:
        _require(value, _is_plain(value, hint), _PLAIN_TYPES[hint], name)
    return value


def _dataclass(value: Any, hint: Any, name: str) -> Any:
    _require(value, isinstance(value, dict), "an object", name)
    hints = typing.get_type_hints(hint)
    fields = {field.name: field for field in dataclasses.fields(hint) if field.init}
    if unknown := sorted(value.keys() - fields.keys()):
        raise InputError(
            f"{name} has {', '.join(unknown)}, which this version does not know: use the version "
            "that wrote it"
        )
    missing = [
        field.name
        for field in fields.values()
        if field.name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{name} has no {', '.join(missing)}: restore it")
    return hint(**{key: _value(part, hints[key], f"{name}.{key}") for key, part in value.items()})


def _is_plain(value: Any, hint: type) -> bool:
    if isinstance(value, bool):  # which is an int to Python
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _require(value: Any, is_met: bool, required: str, name: str) -> None:
    if not is_met:
        what = kind_of(value) if isinstance(value, dict | list) else repr(value)
        raise InputError(f"{name} is {what[:80]} where {required} belongs: restore it")
