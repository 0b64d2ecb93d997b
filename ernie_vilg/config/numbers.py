"""Numbers that are none: NaN and infinity pass every comparison that should have refused them.

Source: ours; NaN compares as false with everything (IEEE 754).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ernie_vilg.errors import InputError


def require_finite(settings: object) -> None:
    """Refuse settings that hold a number which is not finite.

    Args:
        settings: a dataclass, of values, dataclasses, tuples and mappings.

    Raises:
        InputError: there is one; the message names its key.
    """
    for name, value in _values(settings, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}={value}: must be a finite number")


def _values(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every plain value with its key."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _values(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _values(part, f"{name}[{index}]")
    else:
        yield name, value
