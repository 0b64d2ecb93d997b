"""Sampled pictures and captions, encoded again and decoded.

Codes are computed in fp32, as encoding computes them. A picture's codes may still differ in a few
places: where a vector lies as near to one code as to another, rounding decides, and it differs
between kinds of device and sizes of batch. A picture that shares less than a tenth fewer codes is
another picture, or was encoded by another tokenizer.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_pipelines.audit.checks import Tallies
from data_pipelines.audit.tokens import TokenSettings, codes_of, split_captions, text_of
from ernie_vilg.data.batches.pictures import fetch_picture
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import OpenShard
from ernie_vilg.system.devices import choose_device
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.losses.pixel import psnr_of_pictures
from ernie_vilg.vqgan.pixels import from_pictures, to_pictures
from ernie_vilg.vqgan.weights import load_image_tokenizer

MIN_EQUAL_OF_PICTURE = 0.9
"""Smallest fraction of equal codes of the same picture; near ties are far fewer."""


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """Folders of the tokenizers, and the device of the image tokenizer."""

    text: Path | None
    image: Path | None
    device: str


@dataclass(frozen=True, kw_only=True)
class RecodedPicture:
    """A sampled picture and its reconstruction."""

    key: str
    shard: str
    caption: str
    original: bytes
    """PNG file of the shard's picture."""
    decoded: bytes
    """PNG file of the picture that the stored codes decode to."""
    psnr: float
    """Peak signal-to-noise ratio of the two, dB."""
    num_codes: int
    num_equal: int
    """Number of codes that encoding the picture again gives."""


@dataclass(frozen=True, kw_only=True)
class RecodingPair:
    """An image shard and one of its token shards."""

    images: OpenShard
    tokens: OpenShard
    captions: Sequence[Sequence[str]]
    """Captions of every sample of the image shard."""
    settings: TokenSettings
    """Form of the codes and ids."""
    view: int
    """Number of the view of the pictures."""


def recode(
    tokenizers: Tokenizers,
    pair: RecodingPair,
    chosen: Sequence[tuple[int, int]],
    tallies: Tallies,
) -> list[RecodedPicture]:
    """Encode sampled pictures and captions again, and decode their stored codes.

    Args:
        tokenizers: what encodes; a missing one leaves its part out.
        pair: the shards.
        chosen: index of each sample in both shards.
        tallies: takes the problems.

    Returns:
        the pictures that could be read, in order.
    """
    if tokenizers.text is not None:
        text_tokenizer = _text_tokenizer(tokenizers.text)
        for image_at, token_at in chosen:
            ids, _ = text_of(pair.tokens, token_at, pair.settings)
            if ids is not None:
                where = pair.tokens.describe(token_at)
                _compare_text(text_tokenizer, ids, pair.captions[image_at], where, tallies)
    if tokenizers.image is None:
        return []
    readable = [
        (image_at, view, codes)
        for image_at, token_at in chosen
        if (view := _view(pair, image_at)) is not None
        and (codes := codes_of(pair.tokens, token_at, pair.settings)[0]) is not None
    ]
    if not readable:
        return []
    vqgan = _image_tokenizer(tokenizers.image, tokenizers.device)
    return _recoded(vqgan, pair, readable, tallies)


def _view(pair: RecodingPair, at: int) -> Image.Image | None:
    """Return the part of a picture that was encoded; None for one that cannot be read."""
    views = pair.settings.views
    try:
        picture = fetch_picture(pair.images, at).open(views.source_size)
    except DamagedSampleError:
        return None  # the check of pictures counts it
    return views.cut(picture, pair.images.key(at), pair.view)


def _recoded(
    vqgan: VQGAN,
    pair: RecodingPair,
    readable: Sequence[tuple[int, Image.Image, np.ndarray]],
    tallies: Tallies,
) -> list[RecodedPicture]:
    device = next(vqgan.parameters()).device
    stored = torch.from_numpy(np.stack([codes for _, _, codes in readable]).astype(np.int64))
    pictures = [picture for _, picture, _ in readable]
    with torch.inference_mode():
        again = vqgan.encode(from_pictures(pictures).to(device)).cpu()
        decoded = to_pictures(vqgan.decode(stored.to(device)))
    found = []
    for (at, picture, _), one, other, drawn in zip(readable, stored, again, decoded, strict=True):
        num_equal = int((one == other).sum())
        problems = []
        if num_equal < MIN_EQUAL_OF_PICTURE * one.numel():
            problems.append(
                f"{num_equal} of {one.numel()} codes of {pair.images.describe(at)} are those of "
                "its picture: encode the shards again"
            )
        tallies["recoding"].add(problems)
        found.append(
            RecodedPicture(
                key=pair.images.key(at),
                shard=pair.tokens.shard.file,
                caption=next(iter(pair.captions[at]), ""),
                original=_png(picture),
                decoded=_png(drawn),
                psnr=psnr_of_pictures([picture], [drawn]),
                num_codes=one.numel(),
                num_equal=num_equal,
            )
        )
    return found


def _compare_text(
    tokenizer: TextTokenizer,
    ids: np.ndarray,
    captions: Sequence[str],
    where: str,
    tallies: Tallies,
) -> None:
    parts = [part.tolist() for part in split_captions(ids)]
    again = [tokenizer.encode(caption) for caption in captions]
    problems = []
    if parts != again:
        problems = [
            f"the text ids of {where} are not those of its caption {' / '.join(captions)!r:.120}"
        ]
    tallies["text_of_captions"].add(problems)
    decoded = [tokenizer.comparable(tokenizer.decode(part)) for part in again]
    wanted = [tokenizer.comparable(caption) for caption in captions]
    pairs = zip(wanted, decoded, strict=True)
    lost = [f"{one!r:.80} comes back as {two!r:.80}" for one, two in pairs if one != two]
    tallies["round_trip"].add(lost)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _text_tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.load(folder)


@lru_cache(maxsize=1)
def _image_tokenizer(folder: Path, device: str) -> VQGAN:
    vqgan, _ = load_image_tokenizer(folder)
    return vqgan.to(choose_device(device))
