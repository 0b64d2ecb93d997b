"""The audit of finished shards: every check, and the figures for a report.

One task per shard reads it from end to end. A database then joins what the shards hold with the
metadata. Memory grows with neither the rows nor the shards: keys, captions and histograms of codes
lie in a scratch folder.

A shard whose hash differs is not read further: its samples are left out of the other checks, so
that one flipped bit is one problem and not thousands.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from duckdb import DuckDBPyConnection

from data_pipelines.audit import database as tables
from data_pipelines.audit.checks import CLAIMS, Check, Outcome, Tallies, conclude
from data_pipelines.audit.codes import (
    MIN_SHARDS,
    CodeStatistics,
    code_statistics,
    divergence,
    unlike_shards,
)
from data_pipelines.audit.curation_file import check_curation, rules_of
from data_pipelines.audit.examples import Examples, read_examples
from data_pipelines.audit.inputs import TRAIN, Inputs, check_lineage, pass_tasks, read_inputs
from data_pipelines.audit.samples import RecodedStatistics
from data_pipelines.audit.shard_pass import PassResult, PassTask, read_shards
from data_pipelines.audit.statistics import (
    CaptionStatistics,
    RowStatistics,
    caption_statistics,
    row_statistics,
)
from data_pipelines.audit.token_counts import check_counts, check_truncation
from data_pipelines.audit.tokens import TokenFindings
from data_pipelines.encoding.encode import BFLOAT16_CODES
from data_pipelines.encoding.task import TokenCounts, new_counts
from data_pipelines.executor import Executor
from data_pipelines.metadata import CURATION_FILE, METADATA_FOLDER
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import scratch_folder
from ernie_vilg.system.devices import choose_device
from ernie_vilg.system.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Size of a folder of shards."""

    name: str
    """Kind and split, such as "tokens, train"."""
    location: str
    num_samples: int
    num_shards: int
    num_bytes: int
    settings: Mapping[str, object]


@dataclass(kw_only=True)
class Audit:
    """Everything that an audit found."""

    checks: tuple[Check, ...] = ()
    data_sets: tuple[DataSet, ...] = ()
    rows: RowStatistics | None = None
    captions: CaptionStatistics | None = None
    tokens: TokenFindings | None = None
    codes: CodeStatistics | None = None
    recoded: RecodedStatistics | None = None
    examples: Examples = field(default_factory=Examples)

    @property
    def failed(self) -> list[Check]:
        """Checks that failed."""
        return [check for check in self.checks if check.outcome == Outcome.FAILED]


@dataclass(kw_only=True)
class _Progress:
    """State of an audit between its steps."""

    tallies: Tallies = field(default_factory=Tallies)
    unread_images: list[tuple[str, int]] = field(default_factory=list)
    """Split and position of the image shards that cannot be read."""
    unread_tokens: set[str] = field(default_factory=set)
    """Splits with token shards that cannot be read."""
    counts: dict[str, TokenCounts] = field(default_factory=dict)
    """Counts of the token shards by split."""
    histograms: list[tuple[str, Path, int]] = field(default_factory=list)
    """Name, file of the codes' histogram and number of pictures, by token shard."""
    not_checked: dict[str, str] = field(default_factory=dict)


def audit_shards(config: AuditShardsConfig, scratch_parent: Path) -> Audit:
    """Make every check of the shards.

    Args:
        config: what to audit.
        scratch_parent: existing folder for temporary files.

    Raises:
        InputError: a folder has no manifest, a tokenizer cannot be read, or the device does not
            exist. Problems of the data raise nothing.
    """
    choose_device(config.device)
    state, audit = _Progress(), Audit()
    inputs = read_inputs(config, state.tallies)
    check_lineage(inputs, state.tallies)
    with scratch_folder(scratch_parent, "audit") as scratch:
        for name in ("samples", "histograms"):
            (scratch / name).mkdir()
        tasks = pass_tasks(config, inputs, scratch, state.tallies)
        _read_all(config, tasks, state, audit)
        _judge_codes(config, inputs, state, audit)
        threads = config.num_workers
        with tables.open_database(scratch, memory=config.memory, num_threads=threads) as opened:
            _judge_rows(config, inputs, opened, state, audit)
    audit.data_sets = _data_sets(inputs)
    audit.checks = conclude(state.tallies, _reasons(config, inputs, state))
    for check in audit.checks:
        for problem in check.problems:
            logger.warning("%s: %s: %s", check.outcome.value, check.claim, problem)
    return audit


def _read_all(
    config: AuditShardsConfig, tasks: list[PassTask], state: _Progress, audit: Audit
) -> None:
    """Read every shard, and add up the findings in the order of the shards."""
    executor = Executor(
        kind=config.executor,
        num_workers=config.num_workers,
        ray_address=config.ray_address,
        shared_folder=Path(config.output_dir).parent,
    )
    recoded = RecodedStatistics(most=config.examples)
    results = executor.map_in_order(read_shards, tasks)
    read = progress(results, total=len(tasks), what="audit shards", unit="shards")
    for task, result in zip(tasks, read, strict=True):
        state.tallies.merge(result.tallies)
        recoded.add(result.pictures)
        if task.images is not None and not result.has_images:
            state.unread_images.append((task.images.split, task.images.position))
        _add_tokens(task, result, state, audit)
    audit.recoded = recoded if recoded.num_pictures else None


def _add_tokens(task: PassTask, result: PassResult, state: _Progress, audit: Audit) -> None:
    """Add the counts of a task's token shards to those of their split and of all."""
    for number, (part, found) in enumerate(zip(task.tokens, result.tokens, strict=True)):
        if found is None:
            state.unread_tokens.add(part.split)
            continue
        histogram = task.histogram_file(number)
        state.histograms.append((part.shard.file, histogram, found.num_pictures))
        codebook_size = part.settings.codebook_size
        counts = state.counts.setdefault(part.split, new_counts(codebook_size))
        counts.merge(found.counts)
        if audit.tokens is None:
            audit.tokens = TokenFindings(counts=new_counts(codebook_size))
        audit.tokens.merge(found)


def _check_equal_codes(
    config: AuditShardsConfig, inputs: Inputs, tallies: Tallies, recoded: RecodedStatistics
) -> None:
    """Check that enough of all sampled codes come out again, in fp32."""
    required = config.min_equal_codes
    if TRAIN in inputs.tokens:
        compared = inputs.tokens[TRAIN][1].settings.get(BFLOAT16_CODES)
        if isinstance(compared, dict) and compared.get("compared"):
            required -= compared["differing"] / compared["compared"]
    problems = []
    if recoded.equal_share < required:
        problems = [
            f"{recoded.equal_share:.2%} of the sampled codes are equal, where min_equal_codes="
            f"{config.min_equal_codes} and the codes' precision require {required:.2%}"
        ]
    tallies["recoding"].add(problems, checked=0)


def _judge_codes(config: AuditShardsConfig, inputs: Inputs, state: _Progress, audit: Audit) -> None:
    """Check what concerns all token shards together."""
    tallies, found = state.tallies, audit.tokens
    if audit.recoded is not None:
        _check_equal_codes(config, inputs, tallies, audit.recoded)
    if found is None:
        return
    for split, counts in state.counts.items():
        if split in state.unread_tokens:
            state.not_checked["counts"] = "some token shards cannot be read"
        else:
            check_counts(*inputs.tokens[split], counts, tallies)
    check_truncation(config, found.counts, tallies)
    histogram = found.counts.code_counts
    counted = [each for each in state.histograms if each[2]]
    divergences = [divergence(np.load(path), histogram) for _, path, _ in counted]
    if len(counted) >= MIN_SHARDS:
        unlike = set(unlike_shards(divergences, [count for _, _, count in counted]))
        for at, (name, _, _) in enumerate(counted):
            text = f"{name} uses other codes than the rest: {divergences[at]:.3f} bits of 1"
            tallies["drift"].add([text] if at in unlike else [])
    audit.codes = code_statistics(histogram, divergences, inputs.expected_code_counts)


def _judge_rows(
    config: AuditShardsConfig,
    inputs: Inputs,
    connection: DuckDBPyConnection,
    state: _Progress,
    audit: Audit,
) -> None:
    """Check what concerns all samples together, and the metadata."""
    if not inputs.images:
        return
    tallies = state.tallies
    tables.check_keys(connection, tallies)
    audit.captions = caption_statistics(connection)
    if config.image_shards is None or TRAIN not in inputs.images:
        return
    folder, _ = inputs.images[TRAIN]
    if not _has_metadata(folder):
        return
    try:
        audit.examples = read_examples(connection, folder, config.examples)
    except InputError as error:
        tallies["metadata"].add([str(error)])
    if not tables.add_metadata(connection, folder, tallies):
        return
    tables.check_rows(connection, tallies)
    tables.check_kept_rows(connection, tallies, state.unread_images)
    tables.check_hold_out(connection, tallies)
    audit.rows = row_statistics(connection, rules_of(folder))
    num_samples = {split: manifest.num_samples for split, (_, manifest) in inputs.images.items()}
    check_curation(folder, audit.rows.sources, num_samples, tallies)


def _has_metadata(folder: Path) -> bool:
    """Return whether a build has written metadata, even if they are lost."""
    return (folder / METADATA_FOLDER).is_dir() or (folder / CURATION_FILE).is_file()


def _data_sets(inputs: Inputs) -> tuple[DataSet, ...]:
    sets = {f"images, {split}": found for split, found in inputs.images.items()}
    sets |= {f"tokens, {split}": found for split, found in inputs.tokens.items()}
    return tuple(
        DataSet(
            name=name,
            location=str(folder),
            num_samples=manifest.num_samples,
            num_shards=len(manifest.shards),
            num_bytes=sum(shard.bytes for shard in manifest.shards),
            settings=manifest.settings,
        )
        for name, (folder, manifest) in sets.items()
    )


_NEEDS: Mapping[str, tuple[str, ...]] = {
    "image_shards": (
        *("image_manifests", "image_files", "image_members", "keys", "captions", "pictures"),
        *("records", "metadata", "rows", "curation", "kept_rows", "row_captions", "hold_out"),
        *("token_keys", "text_of_captions", "round_trip", "recoding"),
    ),
    "token_shards": (
        *("token_manifest", "lineage", "token_files", "token_members", "token_keys", "codes"),
        *("text_ids", "counts", "text_of_captions", "round_trip", "recoding", "truncation"),
        "drift",
    ),
    "text_tokenizer_dir": ("text_of_captions", "round_trip"),
    "image_tokenizer_dir": ("recoding",),
    "text_length": ("truncation",),
}
"""Checks that need a setting, by the setting."""


def _reasons(config: AuditShardsConfig, inputs: Inputs, state: _Progress) -> dict[str, str]:
    """Return the reasons why checks were not made, by their names."""
    reasons = dict(state.not_checked)
    for setting, names in _NEEDS.items():
        if getattr(config, setting) is None:
            for name in names:
                reasons.setdefault(name, f"{setting} is not given")
    if TRAIN in inputs.images and not _has_metadata(inputs.images[TRAIN][0]):
        for name in ("metadata", "rows", "curation", "kept_rows", "row_captions", "hold_out"):
            reasons.setdefault(name, "launch/build_shards.py wrote no metadata here")
    reasons.setdefault("drift", f"fewer than {MIN_SHARDS} token shards can be read")
    for name in CLAIMS:
        reasons.setdefault(name, "what it reads cannot be read; see above")
    return reasons
