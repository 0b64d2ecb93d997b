"""One image shard to one token shard: its pictures' codes, its captions' ids, and a record."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.captions import captions_at
from data_pipelines.encoding.encoder import (
    DecodedPictures,
    StartedCodes,
    decode_ahead,
    one_behind,
    start_encoding,
)
from data_pipelines.encoding.reuse import OldCodes, open_captions
from data_pipelines.encoding.task import EncodingTask, TokenCounts, new_counts, read_record
from data_pipelines.images import image_bytes
from data_pipelines.shard_writer import write_shard
from ernie_vilg.data.batches.npy import npy_header
from ernie_vilg.data.batches.pictures import PICTURE_MEMBERS, EncodedPicture, fetch_picture
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import (
    KEY,
    LocalFolder,
    OpenShard,
    Sample,
    open_shard,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import json_bytes, write_bytes
from ernie_vilg.storage.locks import locked
from ernie_vilg.system.devices import choose_device
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, END_OF_TEXT_ID
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import load_image_tokenizer

CODES = "codes.npy"
TEXT = "text.npy"
MEMBERS = (CODES, "json", TEXT)
"""Members of every token sample; `keep_pixels` adds one of PICTURE_MEMBERS."""


def encode_shard(task: EncodingTask) -> None:
    """Write one token shard and then its record, unless another process has just done so.

    Raises:
        InputError: the image shard is damaged or has an unusable sample, another process encodes
            it, or bfloat16 changes too many codes.
    """
    task.lock.touch()
    with locked(task.lock) as is_locked:
        if is_locked is False:
            raise InputError(
                f"{task.output} is being encoded by another process: wait for its end, then start "
                "again"
            )
        if not _is_done(task):
            _write_token_shard(task)


def _is_done(task: EncodingTask) -> bool:
    try:
        return read_record(task) is not None
    except InputError:
        return False  # the driver has said so


def _write_token_shard(task: EncodingTask) -> None:
    counts = new_counts(task.settings.codebook_size)
    with ExitStack() as stack:
        if task.codes_shard is None:
            opened = open_shard(LocalFolder(str(task.source)), task.shard)
            stack.enter_context(opened.file)
            pictures = _encoded_pictures(task, opened, counts)
            kept = _kept_member(task)
        else:
            old = stack.enter_context(OldCodes(task))
            opened = open_captions(task)
            stack.enter_context(opened.file)
            pictures, kept = old.samples(opened, counts), old.picture_member
        members = (*MEMBERS, *kept)
        shard = write_shard(task.output, _samples(task, opened, pictures, counts), members=members)
    assert shard is not None  # the manifest lists no shard without samples
    content = json_bytes({"shard": asdict(shard), **counts.as_json()})
    write_bytes(task.record, content, is_only_writer=True)


def _samples(
    task: EncodingTask, opened: OpenShard, pictures: Iterator[Sample], counts: TokenCounts
) -> Iterator[Sample]:
    """Add the captions to the members that come from the pictures."""
    settings = task.settings
    tokenizer = load_text_tokenizer(
        settings.text_tokenizer, sha256=settings.lineage["text_tokenizer"]
    )
    for index, picture in enumerate(pictures):
        captions = captions_at(opened, index, is_several=settings.has_caption_lines)
        ids = [tokenizer.encode(caption) for caption in captions]
        empty = next((number for number, each in enumerate(ids) if not has_ids(each)), None)
        if empty is not None and (len(ids) > 1 or ids[empty]):
            raise InputError(
                f"{opened.describe(index)} has the caption {captions[empty]!r:.80}, of "
                "which, or of a part of it, the text tokenizer makes no ids: build the image "
                "shards without it"
            )
        counts.add_captions(ids)
        yield {KEY: opened.key(index).encode(), TEXT: npy_bytes(text_of(ids)), **picture}


def has_ids(ids: list[int]) -> bool:
    """Return whether a caption has ids, or both a question and its answer have."""
    return bool(ids) and BEGIN_OF_TEXT_ID not in (ids[0], ids[-1])


def text_of(captions: list[list[int]]) -> np.ndarray:
    """Return the captions of a picture as one array, separated by ends of text, int32 [ids]."""
    ids = [*captions[0]]
    for caption in captions[1:]:
        ids += [END_OF_TEXT_ID, *caption]
    return np.array(ids, dtype=np.int32)


def _kept_member(task: EncodingTask) -> tuple[str, ...]:
    """Return the extension of the pictures that token samples keep, if they keep any."""
    if not task.settings.keep_pixels:
        return ()
    if not task.settings.views.is_whole(task.view):
        return ("png",)
    return tuple(name for name in PICTURE_MEMBERS if name in task.shard.members)[:1]


def _encoded_pictures(
    task: EncodingTask, opened: OpenShard, counts: TokenCounts
) -> Iterator[Sample]:
    """Yield the codes of each sample, with its JSON and, if it is kept, its picture."""
    settings = task.settings
    views = settings.views
    tokenizer = load_frozen_vqgan(
        settings.image_tokenizer, settings.device, sha256=settings.lineage["image_tokenizer"]
    )
    kept_bytes: dict[int, bytes] = {}
    (kept,) = _kept_member(task) or ("",)

    def decode(index: int, pixels: np.ndarray) -> None:
        encoded = fetch_picture(_checked(opened, index), index)
        view = views.cut(_open(encoded, task), opened.key(index), task.view)
        pixels[:] = np.asarray(view)
        if kept:
            whole = encoded.content if views.is_whole(task.view) else None
            kept_bytes[index] = image_bytes(view, "png") if whole is None else whole

    batches = decode_ahead(
        decode,
        task.shard.samples,
        image_size=views.image_size,
        batch_size=settings.batch_size,
        num_threads=settings.decode_threads,
        pin_memory=settings.device == "cuda",
    )
    started = ((batch, _started(task, tokenizer, batch, counts)) for batch in batches)
    for batch, codes in one_behind(started):
        counts.add_codes(codes)
        for index, grid in zip(batch.indices, codes, strict=True):
            picture = {kept: kept_bytes.pop(index)} if kept else {}
            yield {CODES: npy_bytes(grid), "json": opened.member("json", index), **picture}


def _checked(opened: OpenShard, index: int) -> OpenShard:
    if (problem := opened.problem(index)) is not None:
        raise problem
    return opened


def _open(encoded: EncodedPicture, task: EncodingTask) -> Image.Image:
    try:
        return encoded.open(task.settings.views.source_size)
    except DamagedSampleError as error:
        raise InputError(f"shard {task.source / task.shard.file}: {error}") from error


def _started(
    task: EncodingTask, tokenizer: VQGAN, batch: DecodedPictures, counts: TokenCounts
) -> StartedCodes:
    """Start to encode a batch; compare the first one of a shard with fp32 codes."""
    settings = task.settings
    in_bfloat16 = settings.precision == "bf16"
    started = start_encoding(tokenizer, batch.pixels, in_bfloat16=in_bfloat16)
    if in_bfloat16 and counts.compared_codes == 0:
        exact = start_encoding(tokenizer, batch.pixels, in_bfloat16=False).result()
        counts.compared_codes = exact.size
        counts.differing_codes = int(np.count_nonzero(exact != started.result()))
        share = counts.differing_codes / counts.compared_codes
        if share > settings.max_differing_codes:
            raise InputError(
                f"precision=bf16 changes {share:.2%} of {exact.size:,} codes of "
                f"{task.source / task.shard.file}, more than max_differing_codes="
                f"{settings.max_differing_codes}: set precision=fp32, or allow it with "
                f"max_differing_codes={np.ceil(100 * share) / 100}"
            )
    return started


# Loaded once per process; the hash is part of the key, so that a tokenizer replaced under the same
# path is loaded again.
@lru_cache(maxsize=1)
def load_text_tokenizer(folder: Path, *, sha256: str) -> TextTokenizer:
    """Load the text tokenizer of a task.

    Raises:
        InputError: it was replaced by another.
    """
    tokenizer = TextTokenizer.load(folder)
    if tokenizer.sha256 != sha256:
        raise _replaced(folder)
    return tokenizer


@lru_cache(maxsize=1)
def load_frozen_vqgan(folder: Path, device: str, *, sha256: str) -> VQGAN:
    """Load the image tokenizer of a task onto a device; "cuda" is this process's own GPU.

    Raises:
        InputError: it was replaced by another.
    """
    tokenizer, found = load_image_tokenizer(folder)
    if found != sha256:
        raise _replaced(folder)
    return tokenizer.to(choose_device(device))


def _replaced(folder: Path) -> InputError:
    return InputError(
        f"the tokenizer in {folder} was replaced while shards were encoded: start the program again"
    )


def npy_bytes(array: np.ndarray) -> bytes:
    """Return an array as numpy writes it to a file."""
    return _npy_header(array.shape, array.dtype.str) + array.tobytes()


# numpy takes longer for the header of a small array than for its values.
@lru_cache(maxsize=4096)
def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    return npy_header(np.empty(shape, dtype)).tobytes()
