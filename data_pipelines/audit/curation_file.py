"""The counts and the rules that a build has recorded, against the metadata."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.audit.checks import Tallies
from data_pipelines.audit.statistics import SourceCounts
from data_pipelines.metadata import CURATION_FILE
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_object


def rules_of(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the recorded rules by name; none if they cannot be read."""
    try:
        content = read_object(folder / CURATION_FILE)
    except (InputError, OSError):
        return {}  # `check_curation` says why
    settings = content.get("settings")
    rules = settings.get("rules") if isinstance(settings, dict) else None
    if not isinstance(rules, dict):
        return {}
    return {name: limits for name, limits in rules.items() if isinstance(limits, dict)}


def check_curation(
    folder: Path,
    sources: Sequence[SourceCounts],
    num_samples: Mapping[str, int],
    tallies: Tallies,
) -> None:
    """Compare the recorded counts with those of the metadata.

    Args:
        folder: folder of image shards.
        sources: counts of the metadata.
        num_samples: samples of every split, as its manifest says.
        tallies: takes the problems.
    """
    tally = tallies["curation"]
    try:
        content = read_object(folder / CURATION_FILE)
    except (InputError, OSError) as error:
        tally.add([f"{folder / CURATION_FILE} cannot be read ({error}): copy it again"])
        return
    counted = {
        each.source: {"rows": each.read, "kept": each.kept, "rejected": dict(each.rejected)}
        for each in sources
    }
    recorded = content.get("sources")
    recorded = recorded if isinstance(recorded, dict) else {}
    nothing = {"rows": 0, "kept": 0, "rejected": {}}  # a source without rows is in no metadata
    for name in sorted(counted.keys() | recorded.keys()):
        one, other = recorded.get(name), counted.get(name, nothing)
        problems = []
        if one != other:
            problems = [f"source {name}: {CURATION_FILE} says {one!r:.300}, the metadata {other}"]
        tally.add(problems)
    samples, found = content.get("samples"), dict(num_samples)
    same = [] if samples == found else [f"{CURATION_FILE} says {samples}, the manifests {found}"]
    tally.add(same)
