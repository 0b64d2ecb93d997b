"""Keeps torch from loading its compiler in a program that compiles nothing.

torch marks hundreds of its functions as excluded from compilation. The first call of such a
function loads the whole compiler, which takes two to three seconds: too long for a program that
should answer within five.

Source: torch/_compile.py of torch 2.13.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


def leave_compiler_unloaded() -> None:
    """Install a stand-in for the compiler, which loads it on any use but that mark.

    The stand-in does not mark functions, so only programs that compile nothing may call this. If
    the compiler is loaded already, nothing happens.
    """
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _Unloaded(_NAME)


class _Unloaded(ModuleType):
    """A stand-in that implements the compiler's `disable` only."""

    def disable(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """Return the function as it is: nothing compiles it."""
        return function

    def __getattr__(self, name: str) -> Any:
        """Load the compiler."""
        if name.startswith("__"):  # attributes that Python looks up in every module
            raise AttributeError(name)
        sys.modules.pop(_NAME, None)
        return getattr(importlib.import_module(_NAME), name)
