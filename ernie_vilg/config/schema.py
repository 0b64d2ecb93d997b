"""Declarations on the fields of settings, and the checks that read them.

A field declares
    its range       `PositiveInt`, or `Annotated[float, Range(above=1)]`
    its choices     `Literal["full", "sparse"]`, or `Annotated[str, Matching(...)]`
    a location      `LocalInput`, `LocalOutput`, or `LocalOrRemote`
    a resume        `MayChange[...]` or `NeverChanges[...]`; settings without a mark are guarded
    W&B             `Tracked[...]`; settings without this mark stay on the machine
    a source        `Annotated[int, Follows("data.text_tokenizer")]`
A mark on a section holds for every setting in it that has none of its own. A class of settings
inherits `Settings`, which checks values when an object is made; its own `__post_init__` then checks
settings against each other. `from_json` undoes `dataclasses.asdict`, strictly.
"""

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import kind_of
from ernie_vilg.storage.locations import check_local

Schema = TypeVar("Schema")
Setting = TypeVar("Setting")

FORMER_NAMES = {
    "max_lost_fraction": "max_damaged_fraction",
    "max_consecutive_losses": "max_consecutive_damaged",
    "max_rejected_fraction": "max_faulty_fraction",
    "max_captions": "sample_captions",
}
"""Names that settings had in older versions, and their names now. Files of older runs are read by
either; a command line is refused, with the new name."""

_PLAIN_TYPES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Range of a number, which must also be finite."""

    at_least: float | None = None
    """Smallest allowed number."""
    above: float | None = None
    """Largest number that is too small."""
    at_most: float | None = None
    """Largest allowed number."""
    below: float | None = None
    """Smallest number that is too large."""
    reason: str = ""
    """Reason for the range, for messages."""

    def holds(self, value: float) -> bool:
        """Return whether a number lies in the range."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Return the range in words."""
        bounds = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        words = " and ".join(f"{word} {end}" for word, end in bounds.items() if end is not None)
        return f"{words}: {self.reason}" if self.reason else words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matching:
    """Pattern that a whole text must match."""

    pattern: str
    """Regular expression."""
    words: str
    """The pattern in words, for messages and help."""


class Location:
    """Mark of a file, folder or URL. Records hold it as an absolute path, without secrets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Location):
    """Mark of a file or folder of this machine: no URL, no command."""

    is_written: bool
    """Whether the program writes it, so that it must have a name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follows:
    """Mark of a number that null on a command line or in a file takes from another setting.

    The field itself is a number: a program fills it in before it makes the dataclass.
    """

    source: str
    """Key of the setting with the folder that has the number."""


class Freedom(enum.StrEnum):
    """Mark that says whether a setting may change when a run resumes."""

    FREE = "free"
    """Changes freely: it decides speed, places or intervals."""
    GUARDED = "guarded"
    """Changes if `allow_changes` names it: it decides the weights from here on."""
    FIXED = "fixed"
    """Never changes: it decides what the run is."""
    UNCOMPARED = "uncompared"
    """Concerns one start only."""


class _Tracked:
    """Mark of a setting that a tracker may send: neither a location nor a secret."""


LocalOrRemote = Annotated[str, Location()]
LocalInput = Annotated[str, Local(is_written=False)]
LocalOutput = Annotated[str, Local(is_written=True)]
MayChange = Annotated[Setting, Freedom.FREE]
NeverChanges = Annotated[Setting, Freedom.FIXED]
OfOneStart = Annotated[Setting, Freedom.UNCOMPARED]
Tracked = Annotated[Setting, _Tracked()]
NumWorkers = Annotated[int, Range(at_least=0, at_most=256)]
"""Number of processes that one process starts; a larger one is a slip that would block the
machine."""
PositiveInt = Annotated[int, Range(at_least=1)]
NaturalInt = Annotated[int, Range(at_least=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NaturalFloat = Annotated[float, Range(at_least=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
"""Part of a whole, from 0 to 1."""
FractionBelowOne = Annotated[float, Range(at_least=0, below=1)]


class Settings:
    """Base of a frozen dataclass of settings, which checks what its fields declare."""

    _section = ""

    def __init_subclass__(cls, section: str = "") -> None:
        """Take the section of the keys, such as `loader` in `loader.num_workers`."""
        cls._section = section

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: a value has the wrong type, is out of its range, or is none of its choices.
        """
        check(self, self._section)


def check(settings: Any, section: str = "") -> None:
    """Check every value of a dataclass against the declarations of its fields.

    Args:
        settings: dataclass of plain values, tuples, mappings and dataclasses.
        section: section of its keys, for messages.

    Raises:
        InputError: a value is wrong; the message names its key.
    """
    schema: type = type(settings)
    for name, hint in declared(schema).items():
        _check(getattr(settings, name), hint, f"{section}.{name}" if section else name)


@functools.cache
def declared(schema: type) -> dict[str, Any]:
    """Return the types and declarations of a dataclass's fields by name."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def freedom_of(schema: type, key: str) -> Freedom:
    """Return whether a setting may change when a run resumes; the innermost mark holds."""
    freedom, kind = Freedom.GUARDED, typing.cast(Any, schema)
    for part in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind, marks = _kind_and_marks(declared(typing.cast(type, kind)).get(part))
            freedom = next((mark for mark in marks if isinstance(mark, Freedom)), freedom)
        else:  # a mapping has one type for all its values
            kind = (*typing.get_args(kind), None, None)[1]
    return freedom


def source_of(hint: Any) -> str | None:
    """Return the key of the setting that a number follows while it is null, from its type."""
    marks = _kind_and_marks(hint)[1]
    return next((mark.source for mark in marks if isinstance(mark, Follows)), None)


def tracked_settings(settings: Any) -> dict[str, Any]:
    """Return the settings that a tracker may send, as `dataclasses.asdict` does."""
    found, schema = {}, typing.cast(type, type(settings))
    for name, hint in declared(schema).items():
        value = getattr(settings, name)
        is_section = dataclasses.is_dataclass(value)
        if any(isinstance(mark, _Tracked) for mark in _kind_and_marks(hint)[1]):
            found[name] = dataclasses.asdict(value) if is_section else value
        elif is_section and (part := tracked_settings(value)):
            found[name] = part
    return found


def map_locations(settings: Any, change: Callable[[str], str]) -> dict[str, Any]:
    """Return what `dataclasses.asdict` returns, with every location changed."""

    def mapped(value: Any, hint: Any) -> Any:
        kind, marks = _kind_and_marks(hint)
        if dataclasses.is_dataclass(value):
            return map_locations(value, change)
        if isinstance(value, Mapping):
            return {key: mapped(part, typing.get_args(kind)[1]) for key, part in value.items()}
        if isinstance(value, tuple):
            return tuple(mapped(part, typing.get_args(kind)[0]) for part in value)
        is_location = any(isinstance(mark, Location) for mark in marks)
        return change(value) if is_location and value is not None else value

    hints = declared(typing.cast(type, type(settings)))
    return {name: mapped(getattr(settings, name), hint) for name, hint in hints.items()}


def _kind_and_marks(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a setting's type without null and marks, and its marks."""
    marks: tuple[Any, ...] = ()
    while (part := non_null(hint)) is not hint or typing.get_origin(hint) is Annotated:
        if part is hint:
            part, *found = typing.get_args(hint)
            marks += tuple(found)
        hint = part
    return hint, marks


def _check(value: Any, hint: Any, key: str, ending: str = "") -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _check(value, arguments[0], key, ending)
        for fact in arguments[1:]:
            if isinstance(fact, Range) and not fact.holds(value):
                raise InputError(f"{key}={value}: must be {fact}{ending}")
            if isinstance(fact, Matching) and not re.fullmatch(fact.pattern, value):
                raise InputError(f"{key}={value}: choose {fact.words}{ending}")
            if isinstance(fact, Local):
                check_local(key, value, is_written=fact.is_written)
    elif origin in (types.UnionType, typing.Union):
        if value is not None:
            _check(value, non_null(hint), key, ", or null")
    elif origin is typing.Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            *others, last = map(str, arguments)
            raise InputError(f"{key}={value}: choose {', '.join(others)} or {last}{ending}")
    elif dataclasses.is_dataclass(hint):
        if not isinstance(value, Settings):  # a Settings object has checked itself
            check(value, key)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        for name, part in value.items():
            _check(part, arguments[1], f"{key}.{name}")
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        for index, part in enumerate(value):
            _check(part, arguments[0], f"{key}[{index}]")
    elif hint in _PLAIN_TYPES:
        if not _is_plain(value, hint):
            raise InputError(f"{key}={value}: must be {_PLAIN_TYPES[hint]}{ending}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key}={value}: must be a finite number{ending}")


def non_null(hint: Any) -> Any:
    """Return a setting's type without null."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    (part,) = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return part


def from_json(content: Any, schema: type[Schema], name: str) -> Schema:
    """Return the dataclass that a JSON object describes.

    Args:
        content: a JSON value. Missing fields take their defaults, as in settings that an older
            version wrote.
        schema: the dataclass; its fields may be plain values, dataclasses, tuples, mappings,
            enumerations, literals and optional.
        name: name of the object for messages, such as its file.

    Raises:
        InputError: a value has the wrong type, a field is unknown, a field has neither value nor
            default, or a check of the dataclass failed; the message names the key.
    """
    value: Schema = _value(content, schema, name)
    return value


def _value(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        return _value(value, non_null(hint), name)
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
    value = {_name_now(key, fields): part for key, part in value.items()}
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
    parts = {key: _value(part, hints[key], f"{name}.{key}") for key, part in value.items()}
    try:
        return hint(**parts)
    except InputError as error:  # the error names the setting, but not the file
        raise InputError(f"{name}: {error}") from error


def _name_now(key: str, fields: Mapping[str, Any]) -> str:
    name = FORMER_NAMES.get(key, key)
    return name if name in fields else key


def _is_plain(value: Any, hint: type) -> bool:
    if isinstance(value, bool):  # bool is a subclass of int
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _require(value: Any, is_met: bool, required: str, name: str) -> None:
    if not is_met:
        what = kind_of(value) if isinstance(value, dict | list) else repr(value)
        raise InputError(f"{name} is {what[:80]} where {required} belongs: restore it")
