"""Settings that may change between two starts of a run, and settings that may not.

A run folder records the settings of its last start. The next start compares its own with them,
setting by setting, before it builds anything:

    free      decides speed, places and intervals: may change, and the change is recorded
    guarded   decides the weights from here on: may change when `allow_changes` names it
    fixed     decides what the run is: never changes

Without this check, a typing error in a requeued job, or a default that changed with the code, would
continue the run as another one under the same name. The content of folders is not compared here:
checkpoints hold the hashes of data and tokenizers.

Source: ours; the fault is in OPT-175B's logbook: Adam's settings silently went back to those of the
checkpoint.
"""

import dataclasses
import difflib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.config.run import RunConfig
from ernie_vilg.config.schema import Freedom, freedom_of, map_locations
from ernie_vilg.errors import InputError
from ernie_vilg.runs.recorded_settings import read_settings
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.schedule import learning_rate_at
from ernie_vilg.storage.jsonl import append_records
from ernie_vilg.storage.locations import recorded_location

logger = logging.getLogger(__name__)


_DECODER = "model.reconstructor.decoder"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One setting that differs from the last start."""

    name: str
    """Key of the setting, such as optimizer.learning_rate."""
    old: Any
    """Value at the last start, as JSON."""
    new: Any
    """Value now, as JSON."""
    freedom: Freedom
    """Permission that the change needs."""

    def __str__(self) -> str:
        """Return the change on one line."""
        old, new = (json.dumps(value, ensure_ascii=False) for value in (self.old, self.new))
        return f"{self.name}: {old} -> {new}"


def check_drift(run_dir: Path, config: RunConfig) -> list[Change]:
    """Compare a run's settings with those of its last start.

    Call it before processes and devices are started: it needs neither.

    Args:
        run_dir: the run's folder; a fresh one has no earlier start.
        config: the settings now.

    Returns:
        the changes, all of them allowed.

    Raises:
        InputError: a fixed setting changed, or a guarded one that `allow_changes` does not name; or
            `allow_changes` names an unknown or fixed setting. The message lists every change.
    """
    _check_names(config)
    changes = settings_drift(run_dir, config)
    fixed = [change for change in changes if change.freedom is Freedom.FIXED]
    refused = [
        change
        for change in changes
        if change.freedom is Freedom.GUARDED and not _is_named(change.name, config.allow_changes)
    ]
    if fixed or refused:
        raise InputError(_refusal(run_dir, config, changes, fixed=fixed, refused=refused))
    return changes


def settings_drift(run_dir: Path, config: RunConfig) -> list[Change]:
    """Return every setting that differs from the run's last start, in the order of the schema."""
    if not RunFolder(run_dir).settings.is_file():
        return []
    old, new = (
        comparable_settings(read_settings(run_dir, type(config))),
        comparable_settings(config),
    )
    names = [*new, *(name for name in old if name not in new)]
    return [
        Change(
            name=name,
            old=old.get(name),
            new=new.get(name),
            freedom=freedom_of(type(config), name),
        )
        for name in names
        if old.get(name) != new.get(name) and not _is_filled_in(name, old, new)
    ]


def record_changes(run_dir: Path, config: RunConfig, changes: Sequence[Change], step: int) -> None:
    """Append accepted changes to the run's changes.jsonl and log them; for the leader alone.

    A change of the learning rate is logged too, because more steps stretch its decay.

    Args:
        run_dir: the run's folder, which still has the settings of the last start.
        config: the settings now.
        changes: from `check_drift`.
        step: steps taken before the first one under the new settings.
    """
    for change in changes:
        logger.info("changed from step %d on: %s", step, change)
    lines = ({"step": step, **asdict(change)} for change in changes)
    append_records(RunFolder(run_dir).changes, lines)
    if changes:
        old, new = (
            learning_rate_at(step + 1, settings.training.steps, settings.optimizer)
            for settings in (read_settings(run_dir, type(config)), config)
        )
        if old != new:
            logger.warning("learning rate of step %d: %.3g -> %.3g", step + 1, old, new)


def comparable_settings(config: RunConfig) -> dict[str, Any]:
    """Return a run's settings as JSON values by key, without those of a single start.

    Locations have their recorded form: absolute, and without secrets.
    """
    recorded = map_locations(config, recorded_location)
    content = json.loads(json.dumps(recorded))  # lists of tuples, as in the record
    return {name: value for name, value in _leaves(content, "") if _is_compared(type(config), name)}


def _leaves(group: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in group.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_filled_in(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether null, which takes the decoder's shape from the tokenizer, was filled in."""
    is_open = old.get(_DECODER, ...) is None or new.get(_DECODER, ...) is None
    return name.startswith(_DECODER) and is_open


def _is_named(name: str, allowed: Iterable[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def _check_names(config: RunConfig) -> None:
    """Refuse unknown and fixed settings in `allow_changes`."""
    known = setting_names(config)
    for entry in config.allow_changes:
        if not any(_is_named(name, [entry]) for name in known):
            close = difflib.get_close_matches(entry, known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise InputError(
                f"allow_changes names {entry}, which is no setting{hint}: name settings such as "
                "optimizer.learning_rate, or groups such as optimizer"
            )
        if freedom_of(type(config), entry) is Freedom.FIXED:
            raise InputError(
                f"allow_changes names {entry}, which never changes within a run: leave it out, or "
                "name another run_dir to start afresh"
            )


def setting_names(config: object) -> list[str]:
    """Return the keys of all settings of a run, including null and empty ones."""
    return [name for name in _keys(config, "") if _is_compared(type(config), name)]


def _keys(group: object, prefix: str) -> Iterable[str]:
    for field in dataclasses.fields(group):  # type: ignore[arg-type]
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _is_compared(schema: type, name: str) -> bool:
    return freedom_of(schema, name) is not Freedom.UNCOMPARED


def _refusal(
    run_dir: Path,
    config: RunConfig,
    changes: Sequence[Change],
    *,
    fixed: Sequence[Change],
    refused: Sequence[Change],
) -> str:
    notes = {
        **{change.name: " (not allowed)" for change in refused},
        **{change.name: " (never changes within a run)" for change in fixed},
    }
    lines = [f"  {change}{notes.get(change.name, '')}" for change in changes]
    allowed = [*config.allow_changes, *(change.name for change in refused)]
    ways = ["set them as they were"]
    if refused and not fixed:
        ways.append(f"add 'allow_changes=[{','.join(allowed)}]' to go on with the new values")
    ways.append("name another run_dir to start afresh")
    heading = f"{run_dir} was last started with other settings:"
    return "\n".join([heading, *lines, "; or ".join(ways)])
