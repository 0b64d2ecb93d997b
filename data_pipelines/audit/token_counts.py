"""Counts of a token set's captions and codes: against its manifest, and a model's text slots."""

from pathlib import Path

from data_pipelines.audit.checks import Tallies
from data_pipelines.encoding.task import CODES_FILE, TokenCounts
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.caption_lengths import num_longer, slots_that_fit
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.shard_manifest import Manifest


def check_counts(folder: Path, manifest: Manifest, counts: TokenCounts, tallies: Tallies) -> None:
    """Compare the counts that encoding recorded with those of the shards.

    Args:
        folder: folder of the token shards.
        manifest: its manifest; of an older version, it does not record all of them.
        counts: counts of all its shards.
        tallies: takes the problems.
    """
    for name, value in counts.text_settings().items():
        if name in manifest.settings:
            recorded, problems = manifest.settings[name], []
            if recorded != value:
                problems = [
                    f"{name} of {folder} is {recorded!r:.120}, of its shards {value!r:.120}"
                ]
            tallies["counts"].add(problems)
    codes = manifest.settings.get("codes")
    if isinstance(codes, dict):
        tallies["counts"].add(_code_problems(folder / CODES_FILE, codes, counts))


def _code_problems(path: Path, recorded: dict[str, object], counts: TokenCounts) -> list[str]:
    try:
        found = read_object(path).get("counts")
        sha256 = sha256_of_file(path)
    except (InputError, OSError) as error:
        return [f"{path} cannot be read ({error}): copy it again"]
    if sha256 != recorded.get("sha256"):
        return [f"{path} differs from the manifest's SHA-256: copy it again"]
    if found != counts.code_counts.tolist():
        return [f"{path} counts other codes than the shards hold"]
    return []


def check_truncation(config: AuditShardsConfig, counts: TokenCounts, tallies: Tallies) -> None:
    """Check that few enough captions are longer than the model's text slots."""
    if config.text_length is None or not counts.caption_lengths:
        return
    lengths = counts.caption_lengths
    num_captions, num_cut = sum(lengths.values()), num_longer(lengths, config.text_length)
    problems = []
    if num_cut > config.max_truncated_fraction * num_captions:
        enough = slots_that_fit(lengths, config.max_truncated_fraction)
        problems = [
            f"{num_cut:,} of {num_captions:,} captions ({num_cut / num_captions:.2%}) are longer "
            f"than text_length={config.text_length} and cut, more than max_truncated_fraction="
            f"{config.max_truncated_fraction}: {enough} slots would do ({max(lengths)} cut none)"
        ]
    tallies["truncation"].add(problems, checked=num_captions)
