"""The jobs of a sweep: one command line with several values of a setting, several with one each.

`--multirun optimizer.learning_rate=1e-3,3e-4` has two jobs. Settings with several values are
combined, the last one varies fastest. What is a sweep, Hydra's own parser decides.

Source: the grammar of Hydra 1.3 (https://hydra.cc/docs/advanced/override_grammar/extended).
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from ernie_vilg.errors import InputError

MOST_JOBS = 1000
"""Jobs of a sweep; more are a slip, such as a range with a wrong step."""

_MAY_SWEEP = re.compile(r",|\A\s*\w+\(")
_CHOICE = re.compile(r"\s*choice\((.*)\)\s*", re.DOTALL)
_DECIMAL = re.compile(r"-?\d+\.\d+(e[+-]?\d+)?")
_OPENING, _CLOSING = "([{", ")]}"
_LONGEST_NAME = 120
"""Characters of a job's folder; file systems allow 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a sweep."""

    swept: dict[str, str]
    """Values of this job by key, of the settings that have several."""
    options: tuple[str, ...]
    """Its command line."""

    @property
    def name(self) -> str:
        """Name of its run folder, which depends on its own values only."""
        text = ",".join(f"{key}={value}" for key, value in self.swept.items())
        name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)[:_LONGEST_NAME]
        if name == text:
            return name
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def jobs_of(options: Sequence[str]) -> list[Job]:
    """Return the jobs of a command line, in their order.

    Args:
        options: as typed, without --multirun.

    Raises:
        InputError: no setting has several values, there are too many jobs or two equal ones, or a
            kind of sweep is not supported.
    """
    values = {option: found for option in options if (found := _values(option)) is not None}
    if not values:
        raise InputError(
            "--multirun without a setting of several values: write them with commas, as in "
            "optimizer.learning_rate=1e-3,3e-4, or leave --multirun out"
        )
    count = 1
    for found in values.values():
        count *= len(found)
    if count > MOST_JOBS:
        raise InputError(
            f"{' '.join(values)}: these are more than {MOST_JOBS} jobs: give fewer values"
        )
    jobs = [_job(options, dict(zip(values, each, strict=True))) for each in _product(values)]
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{' '.join(values)}: the job {name} is there twice: give it once")
    return jobs


def _product(values: dict[str, list[str]]) -> list[tuple[str, ...]]:
    return list(itertools.product(*values.values()))


def _job(options: Sequence[str], chosen: dict[str, str]) -> Job:
    """Return a job, given its value for each option that has several."""
    keys = {option: option.partition("=")[0] for option in chosen}
    return Job(
        swept={keys[option].lstrip("+"): value for option, value in chosen.items()},
        options=tuple(
            f"{keys[option]}={chosen[option]}" if option in chosen else option for option in options
        ),
    )


def _values(option: str) -> list[str] | None:
    """Return the values of an option that has several; None for one value."""
    _, equals, value = option.partition("=")
    if not equals or not _MAY_SWEEP.search(value):
        return None
    try:
        parsed = OverridesParser.create().parse_override(option)
    except HydraException as error:
        if value[0] + value[-1] in ("[]", "{}"):  # one list, whose texts are quoted later
            return None
        raise InputError(
            f"{option}: with --multirun a comma separates the values of several jobs, and "
            "name(...) is a function of Hydra, which cannot read this: quote a text with commas "
            "or brackets of its own, as in 'KEY=\"a, b\"'"
        ) from error
    if not parsed.is_sweep_override():
        return None
    sweep = parsed.value() if parsed.is_discrete_sweep() else None
    if not isinstance(sweep, ChoiceSweep | RangeSweep) or sweep.shuffle or sweep.tags:
        raise InputError(
            f"{option}: a sweep has values with commas, choice(...), range(...) and sort(...) of "
            "them; interval, glob, shuffle and tag are not supported: list the values"
        )
    return _as_typed(value, sweep) or _as_hydra_writes(option, parsed)


def _as_typed(value: str, sweep: ChoiceSweep | RangeSweep) -> list[str]:
    """Return the choices in the words of the command line: 1e-3 rather than 0.001; [] elsewhere."""
    if isinstance(sweep, RangeSweep):
        return []
    inner = _CHOICE.fullmatch(value)
    if not sweep.simple_form and inner is None:
        return []
    parts = _split(inner[1] if inner else value)
    return parts if len(parts) == len(sweep.list) else []


def _as_hydra_writes(option: str, parsed: Override) -> list[str]:
    try:
        written = list(itertools.islice(parsed.sweep_string_iterator(), MOST_JOBS + 1))
    except ValueError as error:
        raise InputError(f"{option}: this is no range ({error})") from error
    if not written:
        raise InputError(f"{option}: this range has no value: correct its ends or its step")
    # A range adds up its step: 0.30000000000000004 becomes 0.3.
    return [f"{float(each):.12g}" if _DECIMAL.fullmatch(each) else each for each in written]


def _split(text: str) -> list[str]:
    """Split a text at the commas outside of brackets and quotation marks."""
    parts, depth, quotation, before = [""], 0, "", ""
    for character in text:
        if quotation:
            quotation = "" if character == quotation and before != "\\" else quotation
        elif character in "\"'" and not parts[-1].strip():
            quotation = character
        depth += 0 if quotation else (character in _OPENING) - (character in _CLOSING)
        if character == "," and not quotation and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
        before = character
    return [part.strip() for part in parts]
