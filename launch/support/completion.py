"""The scripts with which bash and zsh complete commands, settings and choices of `ernie-vilg`.

A script has every name in it, so that no program starts when a person presses the tab key.

Source: Programmable Completion in the manual of bash; zshcompsys(1) and zshcompwid(1).
"""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from launch.support.choices import choices_of, groups_of
from launch.support.composition import schema_of
from launch.support.help import settings_of

_BASH = """\
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
    if [[ $command == completion ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'bash zsh' -- "$word")
        return
    fi
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
_BASH_END = "complete -o default -F _ernie_vilg ernie-vilg\n"
_ZSH = """\
# Completion of ernie-vilg for zsh: eval "$(ernie-vilg completion zsh)"
_ernie_vilg() {
    local command=${words[2]//-/_} key
    local -a found
    if (( CURRENT == 2 )); then
        compadd -- ${=_ERNIE_VILG_COMMANDS}
    elif [[ $command == completion ]]; then
        compadd -- bash zsh
    elif [[ $PREFIX == *=* ]]; then
        key=${PREFIX%%=*}
        compset -P 1 '*='
        found=(${=_ERNIE_VILG_CHOICES[$command $key]})
        if (( $#found )); then compadd -a found; else _files; fi
    else
        found=(${=_ERNIE_VILG_SETTINGS[$command]})
        compadd -S '' -- ${(M)found:#*=}
        compadd -- ${found:#*=}
        # After a word that begins no setting there may be a file.
        (( compstate[nmatches] )) || _files
    fi
}
"""
_ZSH_END = """\
(( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit -i }
compdef _ernie_vilg ernie-vilg
"""


def bash_script(programs: Mapping[str, bool]) -> str:
    """Return the script for bash.

    Args:
        programs: names of the programs, and whether each has settings.
    """
    settings, choices = _names(programs)
    lines = [
        f"_ERNIE_VILG_COMMANDS='{_commands(programs)}'",
        "declare -A _ERNIE_VILG_SETTINGS=() _ERNIE_VILG_CHOICES=()",
        *(f"_ERNIE_VILG_SETTINGS[{name}]='{words}'" for name, words in settings.items()),
        *(f"_ERNIE_VILG_CHOICES['{key}']='{words}'" for key, words in choices.items()),
    ]
    return "\n".join([_BASH + lines[0], *lines[1:], _BASH_END])


def zsh_script(programs: Mapping[str, bool]) -> str:
    """Return the script for zsh.

    Args:
        programs: names of the programs, and whether each has settings.
    """
    settings, choices = _names(programs)
    lines = [
        f"_ERNIE_VILG_COMMANDS='{_commands(programs)}'",
        "typeset -gA _ERNIE_VILG_SETTINGS _ERNIE_VILG_CHOICES",
        "_ERNIE_VILG_SETTINGS=(",
        *(f"    '{name}' '{words}'" for name, words in settings.items()),
        ")",
        "_ERNIE_VILG_CHOICES=(",
        *(f"    '{key}' '{words}'" for key, words in choices.items()),
        ")",
    ]
    return "\n".join([_ZSH + lines[0], *lines[1:], _ZSH_END])


SCRIPTS = {"bash": bash_script, "zsh": zsh_script}
"""Functions that return the script, by shell."""


def _commands(programs: Mapping[str, bool]) -> str:
    return " ".join([*programs, "completion"])


def _names(programs: Mapping[str, bool]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the words of each program, and the choices of each "PROGRAM SETTING"."""
    settings: dict[str, str] = {}
    choices: dict[str, str] = {}
    for name in [name for name, has_settings in programs.items() if has_settings]:
        found = dict(_choices(name))
        settings[name] = " ".join([*(f"{key}=" for key in found), "--help", "--cfg"])
        choices |= {f"{name} {key}": " ".join(words) for key, words in found.items() if words}
    return settings, choices


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
