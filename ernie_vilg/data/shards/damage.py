"""Damage in shards and samples, and how much of it a run tolerates.

Damage is a property of the bytes: every rank that reads them gets the same finding, and so does a
resumed run. A shard whose hash differs is damaged as a whole, because nothing in it can be trusted.
Findings travel with the batch that met them. The rank that trains on the batch counts them, writes
each one down once, and stops the run when there are too many.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from ernie_vilg.errors import InputError


class DamageError(InputError):
    """A shard or sample that differs from its manifest. The message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        """Describe the damage.

        Args:
            reason: one word for counting, such as "sha256".
            message: names the shard or sample, what differs and what to do.
        """
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["DamageError"], tuple[str, str]]:
        # By default, pickle would rebuild the error from its message alone.
        return type(self), (self.reason, str(self))


class DamagedShardError(DamageError):
    """A shard that differs from its manifest."""


class DamagedSampleError(DamageError):
    """A sample that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class DamageFinding:
    """One damaged shard or sample."""

    data_set: str
    """Name of the data set."""
    shard: str
    """File of the shard."""
    index: int | None
    """Index of the sample in its shard; None for a whole shard."""
    key: str
    """Key of the sample; empty for a whole shard."""
    num_samples: int
    """Number of damaged samples: 1, or all samples of the shard."""
    reason: str
    """One word, such as "sha256"."""
    detail: str
    """Description for people."""
    position: int
    """Position of the training sequence that met the damage."""

    @property
    def place(self) -> tuple[str, str, int | None]:
        """Data set, shard and index, which identify the damage whatever position met it."""
        return self.data_set, self.shard, self.index


def num_damaged_samples(findings: Collection[DamageFinding]) -> dict[str, int]:
    """Return the number of distinct damaged samples by reason.

    Args:
        findings: distinct findings. A sample of a damaged shard counts for the shard's reason.
    """
    shards = {(each.data_set, each.shard) for each in findings if each.index is None}
    by_reason: Counter[str] = Counter()
    for each in findings:
        if each.index is None or (each.data_set, each.shard) not in shards:
            by_reason[each.reason] += each.num_samples
    return dict(by_reason)


@dataclass(frozen=True, kw_only=True)
class DamageLimits:
    """Amount of damage that stops a run."""

    max_consecutive: int
    """Number of consecutive damaged samples at which the run stops."""
    max_samples: int
    """Largest number of damaged samples with which the run goes on."""


class DamageAccount:
    """The distinct findings of a run, checked against its limits."""

    def __init__(self, limits: DamageLimits, known: Iterable[DamageFinding] = ()) -> None:
        """Start an account.

        Args:
            limits: the limits at which `add` raises.
            known: earlier findings, such as those of the launches before a resume.
        """
        self._limits = limits
        self._findings: dict[tuple[str, str, int | None], DamageFinding] = {}
        self._num_consecutive = 0
        for finding in known:
            self._enter(finding)

    @property
    def num_samples(self) -> int:
        """Number of damaged samples: all samples of damaged shards, and single ones of others."""
        return sum(num_damaged_samples(self._findings.values()).values())

    @property
    def reasons(self) -> Counter[str]:
        """Number of findings by reason."""
        return Counter(finding.reason for finding in self._findings.values())

    def add(self, findings: Iterable[DamageFinding], is_damaged: np.ndarray) -> list[DamageFinding]:
        """Enter the findings of a batch.

        Args:
            findings: the batch's findings.
            is_damaged: whether the sample of each position is damaged, in order, bool [positions].

        Returns:
            the new findings.

        Raises:
            InputError: a limit is reached.
        """
        new = [finding for finding in findings if self._enter(finding)]
        num_samples = self.num_samples if new else 0
        if num_samples > self._limits.max_samples:
            self._stop(
                f"{num_samples} samples are damaged where loader.max_damaged_fraction allows "
                f"{self._limits.max_samples}",
                new[-1],
            )
        longest = self._longest_stretch(is_damaged)
        if longest >= self._limits.max_consecutive:
            self._stop(
                f"{longest} consecutive samples are damaged, loader.max_consecutive_damaged="
                f"{self._limits.max_consecutive}",
                [*self._findings.values()][-1],
            )
        return new

    def _longest_stretch(self, is_damaged: np.ndarray) -> int:
        """Return the longest stretch of damaged samples that ends in this batch or continues."""
        intact = np.flatnonzero(~is_damaged)
        if not len(intact):
            self._num_consecutive += len(is_damaged)
            return self._num_consecutive
        first, last = int(intact[0]), int(intact[-1])
        between = int(np.diff(intact).max(initial=1)) - 1
        longest = max(self._num_consecutive + first, between)
        self._num_consecutive = len(is_damaged) - 1 - last
        return max(longest, self._num_consecutive)

    def _enter(self, finding: DamageFinding) -> bool:
        """Add a finding; return whether it is new."""
        is_new = finding.place not in self._findings
        self._findings.setdefault(finding.place, finding)
        return is_new

    def _stop(self, problem: str, last: DamageFinding) -> None:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        raise InputError(
            f"{problem} ({counts}; the last: {last.detail}): repair the shards, raise the limit, "
            "or train on others"
        )
