"""The report of a finished folder of image shards: what became of every row."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.building.accounting import Counts, counts_of, total_of
from data_pipelines.images import NUM_ENLARGED
from data_pipelines.metadata import CURATION_FILE, HELD_OUT_FOLDER
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.shard_manifest import FILE_NAME, Manifest, read_manifest

_INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Shards that were built, and what became of every row."""

    manifest: Manifest
    """Manifest of the shards."""
    held_out: Manifest | None
    """Manifest of the held-out shards; None if there are none."""
    sources: Mapping[str, Counts]
    """Number of rows by source, in the order of the settings."""

    @property
    def counts(self) -> Counts:
        """Number of rows of all sources."""
        return total_of(self.sources)

    @property
    def rejected(self) -> Mapping[str, int]:
        """Number of rejected rows by reason, the most frequent first."""
        rejected: Mapping[str, int] = self.counts.as_json()["rejected"]
        return rejected

    @property
    def num_samples(self) -> int:
        """Number of samples, held-out ones included."""
        return sum(manifest.num_samples for manifest in self._manifests)

    @property
    def num_enlarged(self) -> int:
        """Number of pictures that were smaller than `image_size`."""
        return sum(int(manifest.settings[NUM_ENLARGED]) for manifest in self._manifests)

    @property
    def _manifests(self) -> list[Manifest]:
        return [self.manifest] if self.held_out is None else [self.manifest, self.held_out]

    def table(self) -> str:
        """Return the number of rows by source and reason for people; each column adds up."""
        columns = {**self.sources, **({"all": self.counts} if len(self.sources) > 1 else {})}
        numbers = {
            "rows": [counts.rows for counts in columns.values()],
            "kept": [counts.kept for counts in columns.values()],
            **{
                reason: [counts.rejected[reason] for counts in columns.values()]
                for reason in self.rejected
            },
        }
        cells = [["", *columns], *([name, *map(_shown, row)] for name, row in numbers.items())]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            _INDENT.join([name.ljust(widths[0]), *map(str.rjust, row, widths[1:])])
            for name, *row in cells
        )


def _shown(number: int) -> str:
    return f"{number:,}"


def read_report(folder: Path) -> BuildReport:
    """Read the report of a finished folder.

    Raises:
        InputError: one of its files cannot be read.
    """
    held_out = folder / HELD_OUT_FOLDER
    content = read_object(folder / CURATION_FILE)
    return BuildReport(
        manifest=read_manifest(folder, "image"),
        held_out=read_manifest(held_out, "image") if (held_out / FILE_NAME).is_file() else None,
        sources={name: counts_of(counts) for name, counts in content["sources"].items()},
    )
