"""The damage that a run has met, written down for good.

`ledger/losses-<data rank>.jsonl` in the run folder has one line per finding, each finding once,
over all launches of the run. Replicas meet the same damage at different positions, so that the
account of the run is put together from all of them.

Source: ours.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ernie_vilg.config.schema import from_json
from ernie_vilg.data.records.ledger import ledger_folder
from ernie_vilg.data.shards.damage import Loss, lost_samples
from ernie_vilg.storage.jsonl import append_records, read_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LossSummary:
    """All damage that a run has met."""

    losses: tuple[Loss, ...]
    """Each finding once, in the order of positions."""
    num_samples: int
    """Different samples lost."""
    num_samples_by_reason: Mapping[str, int]
    """The same by reason; a sample of a lost shard counts for the shard's."""
    num_damaged_lines: int
    """Of the files of findings, that could not be read."""


class LossLog:
    """The file of findings of one data rank; one of its processes writes it."""

    def __init__(self, run_dir: Path, data_rank: int) -> None:
        """Read what was found before, so that nothing is written twice.

        Args:
            run_dir: the run's folder.
            data_rank: the replica.
        """
        self._path = ledger_folder(run_dir) / f"losses-{data_rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        known, _ = _read_loss_file(self._path)
        self._known = {loss.place for loss in known}

    def write(self, losses: Iterable[Loss]) -> int:
        """Write down what is new among some findings, down to the device, and log it.

        Returns:
            how many findings are new.
        """
        new = {loss.place: loss for loss in losses if loss.place not in self._known}
        for loss in new.values():
            logger.warning("%d sample(s) lost: %s", loss.num_samples, loss.detail)
        append_records(self._path, map(asdict, new.values()))
        self._known.update(new)
        return len(new)


class LossCount:
    """How many samples a run has lost, for whoever asks again and again."""

    def __init__(self, run_dir: Path) -> None:
        """Take the run's folder; nothing is read yet."""
        self._run_dir = run_dir
        self._sizes: dict[Path, int] = {}
        self._num_samples = 0

    def num_samples(self) -> int:
        """Return the different samples that all data ranks have lost so far."""
        sizes = {path: path.stat().st_size for path in _loss_files(self._run_dir)}
        if sizes != self._sizes:
            self._sizes, self._num_samples = sizes, read_losses(self._run_dir).num_samples
        return self._num_samples


def read_losses(run_dir: Path) -> LossSummary:
    """Put the findings of all data ranks together."""
    found: list[Loss] = []
    num_damaged_lines = 0
    for path in _loss_files(run_dir):
        of_rank, damaged = _read_loss_file(path)
        found += of_rank
        num_damaged_lines += damaged
    distinct: dict[tuple[str, str, int | None], Loss] = {}
    for loss in sorted(found, key=lambda loss: loss.position):
        # Ranks meet the same damage at different positions: the first meeting counts.
        distinct.setdefault(loss.place, loss)
    losses = tuple(distinct.values())
    by_reason = lost_samples(losses)
    return LossSummary(
        losses=losses,
        num_samples=sum(by_reason.values()),
        num_samples_by_reason=by_reason,
        num_damaged_lines=num_damaged_lines,
    )


def _loss_files(run_dir: Path) -> list[Path]:
    return sorted(ledger_folder(run_dir).glob("losses-*.jsonl"))


def _read_loss_file(path: Path) -> tuple[list[Loss], int]:
    """Return the findings in a file, and how many lines hold none."""
    return read_records(path, lambda record, name: from_json(record, Loss, name))
