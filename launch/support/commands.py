"""`ernie-vilg`: every program of `launch/` as a subcommand, from any folder."""

import ast
import difflib
import importlib
import re
import sys
from collections.abc import Sequence

import ernie_vilg
from ernie_vilg.config.exit_codes import ExitCode
from launch.support.places import PROGRAMS_FOLDER, has_settings

_NAME = "ernie-vilg"
_COMPLETION = "completion"
_SHELLS = ("bash", "zsh")
_COMMAND_IN_SENTENCE = re.compile(r"(: `.*)?\.$", re.DOTALL)
"""End of a docstring's first sentence, which may show a command."""


def main() -> None:
    """Run the program that the first argument names, with the others as its command line."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int | None:
    """Run a command line.

    Args:
        arguments: command line without `ernie-vilg`.

    Returns:
        exit code; None on success.
    """
    first, *others = [*arguments] or ["--help"]
    if first in ("--help", "-h", "help"):
        print(overview())
        return None
    if first == "--version":
        print(f"{_NAME} {ernie_vilg.__version__}")
        return None
    if first == _COMPLETION:
        return _print_completion(others)
    name = first.replace("-", "_")
    if name not in programs():
        print(f"{_NAME}: {unknown(first)}", file=sys.stderr)
        return ExitCode.BAD_SETTINGS
    sys.argv = [str(PROGRAMS_FOLDER / f"{name}.py"), *others]
    code: int | None = importlib.import_module(f"launch.{name}").main()
    return code


def programs() -> dict[str, str]:
    """Return the programs with a sentence about each, from its docstring, without importing any."""
    files = sorted(file for file in PROGRAMS_FOLDER.glob("*.py") if file.stem != "__init__")
    found = {}
    for file in files:
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        paragraph = " ".join(docstring.split("\n\n")[0].split())
        found[file.stem] = _COMMAND_IN_SENTENCE.sub("", re.split(r"(?<=\.) ", paragraph)[0])
    return found


def overview() -> str:
    """Return the list of all commands."""
    width = max(map(len, programs())) + 2
    lines = [f"  {name:{width}}{sentence}" for name, sentence in programs().items()]
    return "\n".join(
        [
            f"{_NAME} COMMAND KEY=VALUE ...",
            "",
            *lines,
            "",
            f"{_NAME} COMMAND --help lists the settings of a command.",
            f"{_NAME} {_COMPLETION} bash (or zsh) prints a script that completes all of them.",
            f"{_NAME} --version prints the version.",
        ]
    )


def unknown(word: str) -> str:
    """Return the message about a word that is no command."""
    name = word.replace("-", "_")
    near = difflib.get_close_matches(name, [*programs(), _COMPLETION], n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}? " if near else ""
    return f"{word}: no such command: {advice}{_NAME} --help lists them"


def _print_completion(arguments: Sequence[str]) -> int | None:
    if list(arguments) not in [[shell] for shell in _SHELLS]:
        print(
            f"{_NAME}: {_COMPLETION} {' '.join(arguments)}: write {_NAME} {_COMPLETION} "
            f'{" or ".join(_SHELLS)}, as in: eval "$(ernie-vilg completion bash)"',
            file=sys.stderr,
        )
        return ExitCode.BAD_SETTINGS
    from launch.support.completion import SCRIPTS  # imports every program

    script = SCRIPTS[arguments[0]]
    print(script({name: has_settings(name) for name in programs()}), end="")
    return None


if __name__ == "__main__":
    main()
