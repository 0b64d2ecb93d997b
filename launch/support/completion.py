"""The script with which bash completes commands, settings and choices of `ernie-vilg`.

The script has every name in it, so that no program starts when a person presses the tab key.

Source: Programmable Completion in the manual of bash.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from launch.support.choices import choices_of, groups_of
from launch.support.composition import schema_of
from launch.support.help import settings_of

_SCRIPT = """\
# Completion of ernie-vilg for bash: eval "$(ernie-vilg completion bash)"
_ernie_vilg() {
    local line=${COMP_LINE:0:COMP_POINT} words command word
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    word=${words[-1]}
    COMPREPLY=()
    if ((${#words[@]} <= 2)); then
        mapfile -t COMPREPLY < <(compgen -W "$_ERNIE_VILG_COMMANDS" -- "$word")
        return
    fi
    command=${words[1]//-/_}
    [[ $command == completion ]] && COMPREPLY=(bash) && return
    if [[ $word == *=* ]]; then
        # Bash ends a word at an equals sign, so the reply has only what follows it.
        mapfile -t COMPREPLY < <(
            compgen -W "${_ERNIE_VILG_CHOICES["$command ${word%%=*}"]-}" -- "${word#*=}")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "${_ERNIE_VILG_SETTINGS[$command]-}" -- "$word")
    [[ ${#COMPREPLY[@]} -gt 0 ]] && compopt -o nospace
}
"""
_END = "complete -o default -F _ernie_vilg ernie-vilg\n"


def bash_script(programs: Mapping[str, bool]) -> str:
    """Return the script.

    Args:
        programs: names of the programs, and whether each has settings.
    """
    lines = [f"_ERNIE_VILG_COMMANDS='{' '.join([*programs, 'completion'])}'"]
    lines += ["declare -A _ERNIE_VILG_SETTINGS=() _ERNIE_VILG_CHOICES=()"]
    for name in [name for name, has_settings in programs.items() if has_settings]:
        choices = dict(_choices(name))
        words = " ".join(f"{key}=" for key in choices)
        lines.append(f"_ERNIE_VILG_SETTINGS[{name}]='{words} --help --cfg'")
        lines += [
            f"_ERNIE_VILG_CHOICES['{name} {key}']='{' '.join(values)}'"
            for key, values in choices.items()
            if values
        ]
    return "\n".join([_SCRIPT + lines[0], *lines[1:], _END])


def _choices(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the groups and settings of a program with their choices, none for a free value."""
    groups = groups_of(name)
    for group in groups:
        yield group, list(choices_of(group))
    for key, hint, _, _ in settings_of(schema_of(name)):
        if key not in groups and "NAME" not in key.split("."):
            yield key, _values(hint)


def _values(hint: Any) -> list[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _values(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return [value for part in arguments for value in _values(part)]
    if origin is typing.Literal:
        return [str(value) for value in arguments]
    return ["true", "false"] if hint is bool else []
