"""Keeps torch from loading its compiler in a program that compiles nothing.

torch marks hundreds of its functions as not to be compiled, and loads the whole compiler, two to
three seconds, when the first of them is called, only to be told so. Where an answer is wanted in
five, that is too long.

Source: ours; see torch/_compile.py of torch 2.13.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


def leave_compiler_unloaded() -> None:
    """Put a stand-in in the compiler's place, until anything but that mark is asked of it.

    What was marked before then stays unmarked: for programs that compile nothing alone. Does
    nothing where the compiler is loaded already.
    """
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _Unloaded(_NAME)


class _Unloaded(ModuleType):
    """Looks like the compiler to whoever only wants to be left alone by it."""

    def disable(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """Return the function: there is nothing that would compile it."""
        return function

    def __getattr__(self, name: str) -> Any:
        """Load the compiler after all."""
        if name.startswith("__"):  # what Python asks of every module
            raise AttributeError(name)
        sys.modules.pop(_NAME, None)
        return getattr(importlib.import_module(_NAME), name)
