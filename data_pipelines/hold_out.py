"""A split of pairs that come in variants: every held-out picture is a variant of a seen one.

A base is a thing, a variant one picture of it: an emoji in a skin tone, a product in a colour. Near
copies of what is held out are therefore trained on, which is the point: the question is whether the
model combines what it knows. `launch/build_shards.py` asks the other question, and holds out whole
clusters of near-duplicates; its `hold_out_fraction` and deduplication stay off for such a split.

A variant is held out if the hash of its name lies below the fraction. Where that would hold out all
variants of a base, the one with the highest hash is trained on. A picture's side therefore depends
on its name, the seed and, in that case only, on the other variants of its base.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.emoji_names import base_of_emoji
from data_pipelines.images import decode_image
from data_pipelines.outputs import output_folder
from data_pipelines.rejections import RejectedError, Rejection, count_reasons
from data_pipelines.sources.captions_file import CAPTIONS_FILE, IMAGE, read_captions_file
from data_pipelines.sources.rows import RawPair
from ernie_vilg.config.hold_out import HoldOutVariantsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.jsonl import line_of

TRAIN, HELD_OUT = "train", "held_out"

_MAX_PIXELS = 64_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HoldOutReport:
    """Counts of a split."""

    num_pairs: Mapping[str, int]
    """Number of pairs by split."""
    num_bases: int
    """Number of bases."""
    num_bases_with_variants: int
    """Number of bases of several variants."""
    num_bases_held_out: int
    """Number of bases of which a variant is held out."""
    num_held_out_captions: int
    """Number of different captions that are held out."""
    num_captions_on_both_sides: int
    """Number of held-out captions that a training pair has too."""
    rejected: Mapping[str, int]
    """Number of rows that give no pair, by reason."""


def hold_out_variants(config: HoldOutVariantsConfig) -> HoldOutReport:
    """Copy every pair to one side of the split.

    Training pairs keep their order. Held-out pairs are in the order of their hashes, so that any
    number of first ones is a random sample.

    Raises:
        InputError: `output_dir` must not be written, there is no pair, or a pair has no base.
    """
    with output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=f"{TRAIN}/{CAPTIONS_FILE}",
        inputs={"source": config.source},
    ) as folder:
        rejected: list[Rejection] = []
        pairs = _readable_pairs(Path(config.source), rejected)
        if not pairs:
            raise InputError(f"source={config.source} holds no usable pair: {_told(rejected)}")
        bases = {pair.picture_id: _base_of(pair, config.base_key) for pair in pairs}
        held_out = choose_held_out(bases, fraction=config.fraction, seed=config.seed)
        splits = {
            TRAIN: [pair for pair in pairs if pair.picture_id not in held_out],
            HELD_OUT: sorted(
                (pair for pair in pairs if pair.picture_id in held_out),
                key=lambda pair: digest_of(pair.picture_id, config.seed),
            ),
        }
        for name, chosen in splits.items():
            _write(folder / name, chosen)
    if rejected:
        logger.warning("source=%s: %s", config.source, _told(rejected))
    return _report(splits, bases, rejected)


def choose_held_out(bases: Mapping[str, str], *, fraction: float, seed: int) -> set[str]:
    """Return the names of the variants that are held out.

    Args:
        bases: base of each variant, by the variant's name.
        fraction: fraction of the variants of bases with several variants.
        seed: seed of the hash.
    """
    variants: dict[str, list[str]] = defaultdict(list)
    for name, base in bases.items():
        variants[base].append(name)
    limit = int(fraction * 2**256)
    held_out: set[str] = set()
    for names in variants.values():
        digests = {name: digest_of(name, seed) for name in names}
        below = {name for name, digest in digests.items() if digest < limit}
        if len(below) == len(names):
            below.remove(max(names, key=lambda name: digests[name]))
        held_out |= below
    return held_out


def digest_of(name: str, seed: int) -> int:
    """Return the SHA-256 of a seed and a name as a number below 2 ** 256."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest(), "big")


def _base_of(pair: RawPair, base_key: str | None) -> str:
    if base_key is None:
        return base_of_emoji(pair.picture_id)
    value = pair.record.get(base_key)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(
            f"base_key={base_key}: {pair.place} has {value!r:.100} there, a string or a whole "
            "number is required: write the base of every picture, or name another key"
        )
    return str(value)


def _readable_pairs(source: Path, rejected: list[Rejection]) -> list[RawPair]:
    """Return the pairs whose picture can be decoded, and append the other rows to `rejected`.

    Pictures are checked before sides are chosen: a base must keep a training variant that
    `launch/build_shards.py` will not reject as unreadable.
    """
    pairs: list[RawPair] = []
    for row in read_captions_file(source):
        if isinstance(row, Rejection):
            rejected.append(row)
            continue
        try:
            decode_image(row.picture.read(), row.picture.name, max_pixels=_MAX_PIXELS)
        except RejectedError as error:
            rejected.append(
                Rejection(row=row.row, place=row.place, reason=error.reason, detail=error.detail)
            )
        else:
            pairs.append(row)
    return pairs


def _write(folder: Path, pairs: Sequence[RawPair]) -> None:
    """Copy pictures and captions."""
    folder.mkdir()
    with (folder / CAPTIONS_FILE).open("wb") as captions:
        for pair in pairs:
            path = folder / pair.picture_id
            if not path.exists():  # several captions may share a picture
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(pair.picture.read())
            captions.write(line_of({**pair.record, IMAGE: pair.picture_id}))


def _told(rejected: Sequence[Rejection]) -> str:
    if not rejected:
        return "it has no rows"
    reasons = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(rejected).items())
    first = rejected[0]
    return (
        f"rows that give no pair: {len(rejected)} ({reasons}), the first is {first.place}: "
        f"{first.reason} {first.detail}"
    )


def _report(
    splits: Mapping[str, Sequence[RawPair]],
    bases: Mapping[str, str],
    rejected: Sequence[Rejection],
) -> HoldOutReport:
    variants: dict[str, int] = defaultdict(int)
    for base in bases.values():
        variants[base] += 1
    captions = {name: {pair.caption for pair in pairs} for name, pairs in splits.items()}
    return HoldOutReport(
        num_pairs={name: len(pairs) for name, pairs in splits.items()},
        num_bases=len(variants),
        num_bases_with_variants=sum(count > 1 for count in variants.values()),
        num_bases_held_out=len({bases[pair.picture_id] for pair in splits[HELD_OUT]}),
        num_held_out_captions=len(captions[HELD_OUT]),
        num_captions_on_both_sides=len(captions[HELD_OUT] & captions[TRAIN]),
        rejected=count_reasons(rejected),
    )
