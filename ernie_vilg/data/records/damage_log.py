"""The damage that a run has met, on record.

    ledger/damage-<data rank>.jsonl     one finding a line, each finding once, over all launches

Replicas meet the same damage at different positions: `read_damage` merges their files. Runs of
older versions call the files `losses-<data rank>.jsonl`; their lines are the same and are read too.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ernie_vilg.config.schema import from_json
from ernie_vilg.data.shards.damage import DamageFinding, num_damaged_samples
from ernie_vilg.storage.jsonl import append_records, read_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DamageSummary:
    """All damage that a run has met."""

    findings: tuple[DamageFinding, ...]
    """Distinct findings, in the order of positions."""
    num_samples: int
    """Number of distinct damaged samples."""
    num_samples_by_reason: Mapping[str, int]
    """Number of damaged samples by reason; the samples of a damaged shard have the shard's."""
    num_unreadable_lines: int
    """Number of unreadable lines in the damage logs."""


class DamageLog:
    """Writer of one data rank's damage log. One process per data rank has it."""

    def __init__(self, ledger: Path, data_rank: int) -> None:
        """Read the findings of earlier launches, which are not written again.

        Args:
            ledger: the run's ledger folder; it is created if needed.
            data_rank: the replica.
        """
        self._path = ledger / f"damage-{data_rank}.jsonl"
        ledger.mkdir(parents=True, exist_ok=True)
        self._known = {
            finding.place
            for path in _damage_files(ledger, str(data_rank))
            for finding in _read_findings(path)[0]
        }

    def write(self, findings: Iterable[DamageFinding]) -> int:
        """Log the new ones among some findings, and append them to the file, down to the device.

        Returns:
            the number of new findings.
        """
        new = {each.place: each for each in findings if each.place not in self._known}
        for finding in new.values():
            logger.warning("%d damaged sample(s): %s", finding.num_samples, finding.detail)
        append_records(self._path, map(asdict, new.values()))
        self._known.update(new)
        return len(new)


class DamageCount:
    """The number of damaged samples in all damage logs; counts again only when a file has grown."""

    def __init__(self, ledger: Path) -> None:
        """Take the run's ledger folder; nothing is read yet."""
        self._ledger = ledger
        self._sizes: dict[Path, int] = {}
        self._num_samples = 0

    def num_samples(self) -> int:
        """Return the number of distinct damaged samples that all data ranks have met so far."""
        sizes = {path: path.stat().st_size for path in _damage_files(self._ledger)}
        if sizes != self._sizes:
            self._sizes, self._num_samples = sizes, read_damage(self._ledger).num_samples
        return self._num_samples


def read_damage(ledger: Path) -> DamageSummary:
    """Merge the findings of all data ranks.

    Args:
        ledger: the run's ledger folder.
    """
    found: list[DamageFinding] = []
    num_unreadable_lines = 0
    for path in _damage_files(ledger):
        findings, num_unreadable = _read_findings(path)
        found += findings
        num_unreadable_lines += num_unreadable
    distinct: dict[tuple[str, str, int | None], DamageFinding] = {}
    for finding in sorted(found, key=lambda finding: finding.position):
        distinct.setdefault(finding.place, finding)  # keeps the first position
    by_reason = num_damaged_samples(distinct.values())
    return DamageSummary(
        findings=tuple(distinct.values()),
        num_samples=sum(by_reason.values()),
        num_samples_by_reason=by_reason,
        num_unreadable_lines=num_unreadable_lines,
    )


def _damage_files(ledger: Path, data_rank: str = "*") -> list[Path]:
    """Return the damage logs of one or all data ranks, those of older versions first."""
    return [
        path
        for name in ("losses", "damage")
        for path in sorted(ledger.glob(f"{name}-{data_rank}.jsonl"))
    ]


def _read_findings(path: Path) -> tuple[list[DamageFinding], int]:
    """Return the findings in a file, and the number of unreadable lines."""
    return read_records(path, lambda record, name: from_json(record, DamageFinding, name))
