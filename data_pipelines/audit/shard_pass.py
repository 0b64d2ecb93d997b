"""One image shard and its token shard, read once from end to end.

Every byte is hashed, every header and every text and code is read; a few samples, chosen by a hash
of their keys, are decoded and encoded again. Keys and captions go to a file for the database, the
histogram of codes to another, so what comes back to the driver does not grow with the shard.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.audit.checks import Tallies
from data_pipelines.audit.recoding import RecodedPicture, RecodingPair, Tokenizers, recode
from data_pipelines.audit.tokens import TokenFindings, TokenSettings, read_tokens
from data_pipelines.captions import captions_at
from ernie_vilg.data.batches.pictures import fetch_picture
from ernie_vilg.data.shards.damage import DamageError
from ernie_vilg.data.shards.open_shards import LocalFolder, OpenShard, open_shard
from ernie_vilg.data.shards.tar_index import index_tar
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import object_of, parse_json
from ernie_vilg.storage.shard_manifest import Shard


@dataclass(frozen=True, kw_only=True)
class ImageShard:
    """An image shard to read."""

    folder: Path
    shard: Shard
    split: str
    """train or held_out."""
    position: int
    """Number of the shard in its manifest, from 0."""
    image_size: int
    has_caption_lines: bool
    """Whether each line of a sample's txt is a caption of its own."""
    is_ours: bool
    """Whether build_shards wrote it, which cleans captions; they are also cleaned when read."""


@dataclass(frozen=True, kw_only=True)
class TokenShard:
    """A token shard to read."""

    folder: Path
    shard: Shard
    settings: TokenSettings
    split: str
    view: int
    """Number of the view of its pictures, from 0."""


@dataclass(frozen=True, kw_only=True)
class PassTask:
    """An image shard to read, and its token shards, one per view; or only one of the two."""

    number: int
    """Position among all tasks."""
    images: ImageShard | None
    tokens: tuple[TokenShard, ...]
    tokenizers: Tokenizers
    num_samples: int
    """Number of samples that are decoded and encoded again."""
    scratch: Path
    """Folder for the files of the database and of the histograms."""

    @property
    def samples_file(self) -> Path:
        """File of the samples' keys and captions, one JSON object per line."""
        return self.scratch / "samples" / f"{self.number:06d}.jsonl"

    def histogram_file(self, token_shard: int) -> Path:
        """Return the file of the number of uses per code of a token shard, int64 [codebook]."""
        return self.scratch / "histograms" / f"{self.number:06d}-{token_shard:03d}.npy"


@dataclass(kw_only=True)
class PassResult:
    """Findings in a shard."""

    tallies: Tallies = field(default_factory=Tallies)
    has_images: bool = False
    """Whether there is an image shard that can be read."""
    tokens: list[TokenFindings | None] = field(default_factory=list)
    """Counts of every token shard; None for one that cannot be read."""
    pictures: list[RecodedPicture] = field(default_factory=list)
    """The sampled pictures."""


def read_shards(task: PassTask) -> PassResult:
    """Read the shards of a task and check everything that needs no other shard."""
    result = PassResult()
    images = _opened(task.images, "image", result.tallies)
    result.has_images = images is not None
    try:
        captions = _read_images(task, images, result.tallies)
        for number, part in enumerate(task.tokens):
            tokens = _opened(part, "token", result.tallies)
            if tokens is None:
                result.tokens.append(None)
                continue
            with tokens.file:
                found = read_tokens(tokens, part.settings, result.tallies)
                result.tokens.append(found)
                np.save(task.histogram_file(number), found.counts.code_counts)
                if images is not None:
                    _compare_keys(images, tokens, result.tallies)
                    pair = RecodingPair(
                        images=images,
                        tokens=tokens,
                        captions=captions,
                        settings=part.settings,
                        view=part.view,
                    )
                    result.pictures += _recode(task, pair, result.tallies)
    finally:
        if images is not None:
            images.file.close()
    return result


def chosen_samples(keys: np.ndarray, count: int) -> list[int]:
    """Return the indices of `count` samples, in order: those whose keys have the least hashes.

    Args:
        keys: keys of the samples, bytes [samples].
        count: number of samples; fewer are there in a small shard.
    """
    hashed = sorted((hashlib.sha256(key).digest(), at) for at, key in enumerate(keys.tolist()))
    return sorted(at for _, at in hashed[:count])


def _opened(part: ImageShard | TokenShard | None, kind: str, tallies: Tallies) -> OpenShard | None:
    """Return an open shard whose hashes and members are right; None otherwise."""
    if part is None:
        return None
    files, members = tallies[f"{kind}_files"], tallies[f"{kind}_members"]
    try:
        opened = open_shard(LocalFolder(str(part.folder)), part.shard)
    except (DamageError, OSError) as error:
        files.add([str(error)])
        return None
    files.add()
    problems = list(_member_problems(opened))
    members.add(problems, checked=part.shard.samples)
    if not problems:
        return opened
    opened.file.close()
    return None


def _member_problems(opened: OpenShard) -> Iterator[str]:
    """Yield the differences between the tar file's headers and the index."""
    opened.file.seek(0)
    try:
        found = index_tar(opened.file, opened.shard.members, opened.location)
    except DamageError as error:
        yield str(error)
        return
    if len(found.keys) != opened.shard.samples:
        yield (
            f"{opened.location} holds {len(found.keys)} samples where the manifest says "
            f"{opened.shard.samples}: build the shards again"
        )
        return
    for at, problem in found.problems.items():
        yield f"{opened.describe(at)}: {problem.detail}"
    index = opened.index
    same = found.keys.tolist() == index.keys.tolist() and all(
        np.array_equal(found.records[name], index.records[name])
        and np.array_equal(found.sizes[name], index.sizes[name])
        for name in opened.shard.members
    )
    if not same and not found.problems:
        yield f"{opened.location}.index places members where the tar file has none"


def _read_images(task: PassTask, opened: OpenShard | None, tallies: Tallies) -> list[list[str]]:
    """Check captions and sampled pictures of a shard, and write the database's file.

    Returns:
        the captions of every sample.
    """
    if opened is None or task.images is None:
        return []
    captions, entries = [], []
    where = {"split": task.images.split, "shard": task.images.position}
    for at in range(opened.shard.samples):
        lines, problem = _captions_of(opened, at, task.images)
        tallies["captions"].add([problem] if problem else [])
        captions.append(lines)
        text = "\n".join(lines) if lines else None
        entry = {**where, "key": opened.key(at), "captions": text}
        entries.append(json.dumps(entry, ensure_ascii=False) + "\n")
    task.samples_file.write_text("".join(entries), encoding="utf-8")
    for at in chosen_samples(opened.index.keys, task.num_samples):
        tallies["pictures"].add(_picture_problems(opened, at, task.images.image_size))
        if task.images.is_ours:
            tallies["records"].add(_record_problems(opened, at, captions[at]))
    return captions


def _captions_of(opened: OpenShard, at: int, images: ImageShard) -> tuple[list[str], str]:
    """Return a sample's captions, and why they are wrong, or an empty text."""
    try:
        lines = captions_at(opened, at, is_several=images.has_caption_lines)
    except DamageError as error:
        return [], str(error)
    if images.is_ours and opened.member("txt", at).decode() != "\n".join(lines):
        return lines, f"the captions of {opened.describe(at)} were not cleaned: {lines!r:.120}"
    return lines, ""


def _picture_problems(opened: OpenShard, at: int, image_size: int) -> Iterator[str]:
    try:
        fetch_picture(opened, at).open(image_size)
    except DamageError as error:
        yield str(error)


def _record_problems(opened: OpenShard, at: int, captions: list[str]) -> Iterator[str]:
    name = f"the json of {opened.describe(at)}"
    try:
        record = object_of(parse_json(opened.member("json", at), name), name)
    except (KeyError, InputError) as error:
        yield str(error)
        return
    recorded = record.get("captions", [record.get("caption")])
    if recorded != captions or record.get("caption") != captions[0]:
        yield f"{name} has captions {recorded!r:.120} where its txt has {captions!r:.120}"


def _compare_keys(images: OpenShard, tokens: OpenShard, tallies: Tallies) -> None:
    """Check that both shards hold the same samples in the same order."""
    theirs, ours = images.index.keys.tolist(), tokens.index.keys.tolist()
    problems = []
    if theirs != ours:
        pairs = enumerate(zip(theirs, ours, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(len(theirs), len(ours)))
        problems = [
            f"{tokens.location} has {len(ours)} samples, {images.location} {len(theirs)}; they "
            f"differ from sample {at} on: encode the shards again"
        ]
    tallies["token_keys"].add(problems)


def _recode(task: PassTask, pair: RecodingPair, tallies: Tallies) -> list[RecodedPicture]:
    """Compare sampled pictures and captions with their codes and ids."""
    keys = pair.images.index.keys
    places = {key: at for at, key in enumerate(pair.tokens.index.keys.tolist())}
    chosen = [
        (at, places[keys[at]])
        for at in chosen_samples(keys, task.num_samples)
        if keys[at] in places
    ]
    return recode(task.tokenizers, pair, chosen, tallies)
