"""Accounts of the rows: each one is kept, or counted by the reason of its rejection."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.building.final_metadata import list_rejected, rejected_lines
from data_pipelines.building.job import BuildingJob
from data_pipelines.metadata import REJECTED_FILE, database
from data_pipelines.rejections import FAULTS, Reason
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes

_MOST_EXAMPLES = 3
"""Reasons of which a message has an example."""
_ADVICE: Mapping[str, str] = {
    Reason.MISSING_IMAGE: "; images_root= names the folder where the paths begin",
    Reason.UNSAFE_PATH: "; paths are relative, have / between folders, and stay within images_root",
    Reason.NOT_A_ROW: "; a table is UTF-8, with a field for every column of its first line",
}
"""Remedies of faults that usually have one cause in all rows."""


@dataclass(kw_only=True)
class Counts:
    """Number of rows of one source, or of all."""

    rows: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Number of rejected rows by reason."""

    def add(self, other: "Counts") -> None:
        """Add other rows."""
        self.rows += other.rows
        self.kept += other.kept
        self.rejected.update(other.rejected)

    @property
    def faults(self) -> int:
        """Number of rows that cannot be read."""
        return sum(number for reason, number in self.rejected.items() if reason in FAULTS)

    def as_json(self) -> dict[str, Any]:
        """Return the counts as JSON, the most frequent reason first, equal ones by name."""
        rejected = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))
        return {"rows": self.rows, "kept": self.kept, "rejected": dict(rejected)}


def counts_of(content: Mapping[str, Any]) -> Counts:
    """Return counts from their JSON."""
    return Counts(rows=content["rows"], kept=content["kept"], rejected=Counter(content["rejected"]))


def total_of(counts: Mapping[str, Counts]) -> Counts:
    """Return the counts of all sources together."""
    total = Counts()
    for of_source in counts.values():
        total.add(of_source)
    return total


def check_not_empty(job: BuildingJob, counts: Counts) -> None:
    """Raise an error if there is no row at all.

    Raises:
        InputError: there is none.
    """
    if counts.rows == 0:
        raise InputError(f"{job.where}: it is empty; add rows to it")


def check_faults(job: BuildingJob, counts: Counts, table: str, *, is_all: bool) -> None:
    """Raise an error if too many rows are faulty.

    Args:
        job: the job, and the allowed fraction.
        counts: all rows that were read so far.
        table: SQL table of their metadata, for the list of rejected rows.
        is_all: whether these are all rows.

    Raises:
        InputError: more are faulty than the fraction of all rows; where their number is not known
            before the end, of those that were read.
    """
    allowed = job.config.max_faulty_fraction
    if counts.faults > allowed * (job.num_rows or counts.rows):
        faulty = Counter({key: n for key, n in counts.rejected.items() if key in FAULTS})
        raise _too_few(
            job, table, f"{counts.faults} of {_rows(counts, is_all)} faulty", faulty,
            f"max_faulty_fraction={allowed} is allowed", "allow a larger fraction",
        )  # fmt: skip


def check_accounts(job: BuildingJob, read: Counts, final: Counts, table: str) -> None:
    """Raise an error unless every row that was read is accounted for, and one is kept.

    Args:
        job: the job.
        read: rows as their readers counted them.
        final: rows as the final metadata have them.
        table: SQL table of the final metadata.

    Raises:
        InputError: the numbers differ, or no row is kept.
    """
    if final.rows != read.rows or final.kept + final.rejected.total() != final.rows:
        raise InputError(
            f"{job.where}: {read.rows} rows were read, and the metadata have {final.rows}, "
            f"{final.kept} kept and {final.rejected.total()} rejected: remove {job.folder} and "
            "start again"
        )
    if final.kept == 0:
        raise _too_few(
            job, table, f"{final.rejected.total()} of {_rows(final, True)} rejected",
            final.rejected, "one sample left is required", "relax the rules that reject them",
        )  # fmt: skip


def check_written(job: BuildingJob, counts: Counts, num_captions: int) -> None:
    """Raise an error unless the shards hold a caption for every kept row.

    Raises:
        InputError: they do not.
    """
    if num_captions != counts.kept:
        raise InputError(
            f"the shards hold {num_captions} captions, and the metadata have {counts.kept} kept "
            f"rows: remove {job.folder} and start again"
        )


def _rows(counts: Counts, is_all: bool) -> str:
    return f"{counts.rows} rows are" if is_all else f"the first {counts.rows} rows are"


def _too_few(
    job: BuildingJob, table: str, what: str, reasons: Counter[str], rule: str, remedy: str
) -> InputError:
    """Write the list of rejected rows beside the output folder; return the error."""
    listing = job.output_dir.with_name(f"{job.output_dir.name}.{REJECTED_FILE}")
    with database() as connection:
        rejected = list_rejected(connection, table)
    write_bytes(listing, rejected_lines(rejected))
    counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    examples = "".join(
        f" {reason}, first: {row['place']}: {row['detail']}{_ADVICE.get(reason, '')}."
        for reason, _ in reasons.most_common(_MOST_EXAMPLES)
        if (row := next((row for row in rejected if row["reason"] == reason), None)) is not None
    )
    return InputError(
        f"{job.where}: {what} ({counts}), where {rule}: no shards were written.{examples} "
        f"{listing} lists rejected rows; fix these rows, or {remedy}. {job.folder} keeps the "
        "finished work"
    )
