"""What is lost when a shard or a sample turns out damaged, and how much loss a run bears.

Damage is a property of the bytes, so every rank that reads them comes to the same finding, and so
does a run that resumes. A damaged shard is lost whole: where its hash differs, nothing in it can
be trusted. Findings travel with the batch that met them; the rank that trains on the batch keeps
the account, writes each finding down once, and stops when there are too many.

Source: ours.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from ernie_vilg.errors import InputError


class DamageError(InputError):
    """Something that differs from what its manifest promises. The message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        """Describe the damage.

        Args:
            reason: one word for counting, such as "sha256".
            message: names the shard or sample, what differs and what to do.
        """
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["DamageError"], tuple[str, str]]:
        # An exception is rebuilt from what it was made of when it comes out of a worker.
        return type(self), (self.reason, str(self))


class DamagedShardError(DamageError):
    """A shard that differs from its manifest."""


class DamagedSampleError(DamageError):
    """A sample that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One finding of damage."""

    data_set: str
    """Name of the data set."""
    shard: str
    """The shard's file."""
    index: int | None
    """Of the sample in its shard; None where the whole shard is lost."""
    key: str
    """The sample's; empty for a shard."""
    num_samples: int
    """Samples lost: 1, or all of the shard."""
    reason: str
    """One word, such as "sha256"."""
    detail: str
    """What was found, for people."""
    position: int
    """Of the training sequence, where it was met."""

    @property
    def place(self) -> tuple[str, str, int | None]:
        """What is damaged, wherever it was met: data set, shard and index."""
        return self.data_set, self.shard, self.index


def lost_samples(losses: Collection[Loss]) -> dict[str, int]:
    """Return how many different samples are lost, by reason.

    Args:
        losses: findings, each once. A sample of a lost shard counts for the shard's reason.
    """
    lost_shards = {(loss.data_set, loss.shard) for loss in losses if loss.index is None}
    by_reason: Counter[str] = Counter()
    for loss in losses:
        if loss.index is None or (loss.data_set, loss.shard) not in lost_shards:
            by_reason[loss.reason] += loss.num_samples
    return dict(by_reason)


@dataclass(frozen=True, kw_only=True)
class LossLimits:
    """How much loss a run bears before it stops."""

    max_consecutive: int
    """Lost samples in a row."""
    max_samples: int
    """Lost samples in all."""


class LossAccount:
    """Every finding once, and the sum of what is lost."""

    def __init__(self, limits: LossLimits, known: Iterable[Loss] = ()) -> None:
        """Start an account.

        Args:
            limits: at which `add` raises.
            known: findings of before, such as those that a resumed run wrote down.
        """
        self._limits = limits
        self._findings: dict[tuple[str, str, int | None], Loss] = {}
        self._run = 0
        for loss in known:
            self._enter(loss)

    @property
    def num_samples(self) -> int:
        """Samples lost: damaged shards whole, and damaged samples of other shards."""
        return sum(lost_samples(self._findings.values()).values())

    @property
    def reasons(self) -> Counter[str]:
        """Findings by reason."""
        return Counter(loss.reason for loss in self._findings.values())

    def add(self, losses: Iterable[Loss], is_lost: np.ndarray) -> list[Loss]:
        """Enter the findings of a batch.

        Args:
            losses: of the batch.
            is_lost: whether each of its positions lost its sample, in order, bool [positions].

        Returns:
            those that were not known.

        Raises:
            InputError: a limit is reached.
        """
        new = [loss for loss in losses if self._enter(loss)]
        num_samples = self.num_samples if new else 0
        if num_samples > self._limits.max_samples:
            self._stop(
                f"{num_samples} samples are lost where loader.max_lost_fraction allows "
                f"{self._limits.max_samples}",
                new[-1],
            )
        longest_run = self._extend_run(is_lost)
        if longest_run >= self._limits.max_consecutive:
            self._stop(
                f"{longest_run} samples in a row are lost, loader.max_consecutive_losses="
                f"{self._limits.max_consecutive}",
                [*self._findings.values()][-1],
            )
        return new

    def _extend_run(self, is_lost: np.ndarray) -> int:
        """Return the longest run of losses that ends in this batch or goes on after it."""
        kept = np.flatnonzero(~is_lost)
        if not len(kept):
            self._run += len(is_lost)
            return self._run
        first, last = int(kept[0]), int(kept[-1])
        between = int(np.diff(kept).max(initial=1)) - 1
        longest = max(self._run + first, between)
        self._run = len(is_lost) - 1 - last
        return max(longest, self._run)

    def _enter(self, loss: Loss) -> bool:
        if loss.place in self._findings:
            return False
        self._findings[loss.place] = loss
        return True

    def _stop(self, what: str, last: Loss) -> None:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        raise InputError(
            f"{what} ({counts}; the last: {last.detail}): repair the shards, raise the limit, or "
            "train on others"
        )
