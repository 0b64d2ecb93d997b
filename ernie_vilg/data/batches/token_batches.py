"""Token samples become batches: text slots, image codes and, where asked for, pictures.

Each member is read into its row of one buffer, and all rows are decoded together: numpy writes an
array of a known shape always behind the same header, so comparing headers replaces parsing them.
An array that is written in another way is parsed alone, and refused where it does not fit the
model. So a core reads tens of thousands of pairs per second.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.npy import npy_header, parse_npy
from ernie_vilg.data.batches.pictures import EncodedPicture, fetch_picture
from ernie_vilg.data.sequence.sample_sequence import NewRows, SampleSequence
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import OpenShard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.vocabulary import (
    END_OF_TEXT_ID,
    NUM_SPECIAL_IDS,
    PADDING_ID,
    UNKNOWN_ID,
    text_slots,
)

_CODES = "codes.npy"
_TEXT = "text.npy"
_MAX_USUAL_IDS = 1024
"""Longest caption whose header is compared; longer ones are parsed alone."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some pairs, ready for the model, on the CPU."""

    text: Tensor
    """Text ids, int64 [batch, text_length], end of text and padding included."""
    codes: Tensor
    """Image codes in raster order, int64 [batch, num_image_tokens]."""
    pixels: Tensor | None = None
    """The pictures, uint8 [batch, 3, height, width]; only where they were asked for."""

    @property
    def num_text_targets(self) -> int:
        """Text slots to be predicted: all but padding."""
        return int(np.count_nonzero(self.text.numpy() != PADDING_ID))

    def split(self, size: int, *, with_pixels: bool = True) -> list["Batch"]:
        """Cut into micro-batches of `size` pairs, as views; without pixels where they are unused.

        Args:
            size: pairs per micro-batch.
            with_pixels: whether the micro-batches keep the pictures.
        """
        pixels = self.pixels if with_pixels else None
        return [
            Batch(
                text=self.text[first : first + size],
                codes=self.codes[first : first + size],
                pixels=None if pixels is None else pixels[first : first + size],
            )
            for first in range(0, len(self.text), size)
        ]

    def pin_memory(self) -> "Batch":
        """Return the same batch in pinned memory, from which a GPU copies while it computes."""
        return Batch(
            text=self.text.pin_memory(),
            codes=self.codes.pin_memory(),
            pixels=None if self.pixels is None else self.pixels.pin_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class TokenSequence(SampleSequence[Batch]):
    """A sequence of pairs for one model."""

    model: ModelConfig
    """Model that gives the number of slots and the sizes of the vocabularies."""
    with_pixels: bool
    """Read pictures too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for source in self.sources:
            if self.with_pixels and not keeps_pixels(source.manifest):
                raise InputError(
                    f"token shards {source.location} keep no pixels, which with_pixels=True needs: "
                    "encode them again with launch/encode_shards.py ... keep_pixels=true "
                    "overwrite=true"
                )

    @property
    def image_size(self) -> int | None:
        """Pixels per side of the pictures; None where none are read."""
        return int(self.sources[0].manifest.settings["image_size"]) if self.with_pixels else None

    def row_maker(self) -> NewRows[Batch]:
        """Return the constructor of a reader's rows."""
        headers, image_size = _Headers(self.model), self.image_size
        return lambda positions: TokenRows(self.model, headers, len(positions), image_size)


def keeps_pixels(manifest: Manifest) -> bool:
    """Return whether token shards hold pictures; shards older than this setting do not."""
    return bool(manifest.settings.get("pixels", False))


class _Headers:
    """The headers that numpy writes before arrays of the shapes that a model's samples have."""

    def __init__(self, model: ModelConfig) -> None:
        grid = model.image_grid_size
        self.codes = npy_header(np.empty((grid, grid), np.uint16))
        """Header of codes, uint8 [bytes]."""
        self.text = np.stack(
            [npy_header(np.empty(count, np.int32)) for count in range(_MAX_USUAL_IDS + 1)]
        )
        """Header by number of text ids, uint8 [ids, bytes]."""


class TokenRows:
    """The codes, text and pictures of some positions, while samples are decoded into them."""

    def __init__(
        self, model: ModelConfig, headers: _Headers, count: int, image_size: int | None
    ) -> None:
        """Allocate the arrays.

        Args:
            model: model that gives the number of slots and the sizes of the vocabularies.
            headers: headers of the model's arrays.
            count: number of rows.
            image_size: pixels per side of the pictures; None reads none.
        """
        self._model = model
        self._headers = headers
        self._text = np.full((count, model.text_length), PADDING_ID, np.int64)
        self._codes = np.zeros((count, model.num_image_tokens), np.int64)
        self._codes_bytes = np.zeros(
            (count, len(headers.codes) + 2 * model.num_image_tokens), np.uint8
        )
        # Ids beyond the slots reach no model: they are neither read nor checked.
        self._text_bytes = np.zeros(
            (count, headers.text.shape[1] + 4 * model.text_length), np.uint8
        )
        self._codes_view = self._codes_bytes.reshape(-1).data
        self._text_view = self._text_bytes.reshape(-1).data
        self._codes_sizes = np.zeros(count, np.int64)
        self._text_sizes = np.zeros(count, np.int64)
        self._samples: list[tuple[OpenShard, int] | None] = [None] * count
        self._pixels: np.ndarray | None = None
        if image_size is not None:
            self._pixels = np.empty((count, 3, image_size, image_size), np.uint8)
        self._pictures: dict[int, EncodedPicture] = {}

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        """Read the bytes of one shard's samples into these rows."""
        # One by one: a shard has few rows of a batch, so numpy's calls would cost more.
        codes_sizes, codes_records = opened.index.sizes[_CODES], opened.index.records[_CODES]
        text_sizes, text_records = opened.index.sizes[_TEXT], opened.index.records[_TEXT]
        codes_width, text_width = self._codes_bytes.shape[1], self._text_bytes.shape[1]
        for index, row in zip(indices, rows, strict=True):
            self._samples[row] = opened, index
            size = self._codes_sizes[row] = codes_sizes.item(index)
            start = row * codes_width
            end = start + min(size, codes_width)
            opened.read_into(self._codes_view[start:end], codes_records.item(index))
            size = self._text_sizes[row] = text_sizes.item(index)
            start = row * text_width
            end = start + min(size, text_width)
            opened.read_into(self._text_view[start:end], text_records.item(index))
            if self._pixels is not None:
                self._pictures[row] = fetch_picture(opened, index)

    def decode(self, rows: list[int]) -> dict[int, DamagedSampleError]:
        """Decode the fetched bytes of these rows; return the error of each unusable row."""
        if not rows:
            return {}
        # Usually all rows: as a slice, which copies nothing.
        chosen = slice(None) if len(rows) == len(self._text) else np.array(sorted(rows))
        numbers = np.arange(len(self._text))[chosen]
        failed = self._decode_codes(chosen, numbers)
        failed = {**self._decode_text(chosen, numbers), **failed}
        if self._pixels is not None:
            for row in rows:
                try:
                    self._pixels[row] = self._pictures[row].decode(self._pixels.shape[-1])
                except DamagedSampleError as error:
                    failed.setdefault(row, error)
        return failed

    def content(self) -> Batch:
        """Return the decoded rows; the arrays are not copied."""
        return Batch(
            text=torch.from_numpy(self._text),
            codes=torch.from_numpy(self._codes),
            pixels=None if self._pixels is None else torch.from_numpy(self._pixels),
        )

    def _decode_codes(
        self, rows: slice | np.ndarray, numbers: np.ndarray
    ) -> dict[int, DamagedSampleError]:
        header = self._headers.codes
        content = self._codes_bytes[rows]
        is_usual = self._codes_sizes[rows] == content.shape[1]
        is_usual &= (content[:, : len(header)] == header).all(axis=1)
        codes = content[:, len(header) :].view("<u2")
        failed = {}
        for place in np.flatnonzero(~is_usual).tolist():
            row = int(numbers[place])
            codes[place] = 0
            try:
                codes[place] = self._unusual_codes(*self._sample(row))
            except DamagedSampleError as error:
                failed[row] = error
        highest = codes.max(axis=1)
        for place in np.flatnonzero(highest >= self._model.codebook_size).tolist():
            row = int(numbers[place])
            failed[row] = self._code_error(*self._sample(row), int(highest[place]))
        self._codes[rows] = codes
        return failed

    def _sample(self, row: int) -> tuple[OpenShard, int]:
        sample = self._samples[row]
        assert sample is not None, "a row is fetched before it is decoded"
        return sample

    def _unusual_codes(self, opened: OpenShard, index: int) -> np.ndarray:
        """Decode codes that are not written as numpy writes uint16 for this model."""
        codes = _load_array(opened, _CODES, index)
        grid = self._model.image_grid_size
        if codes.shape != (grid, grid) or codes.dtype.kind not in "iu":
            raise DamagedSampleError(
                "codes_shape",
                f"{opened.describe(index)} has codes of shape {codes.shape} where model."
                f"image_grid_size={grid} needs {(grid, grid)}, and of {codes.dtype} where integers "
                "are needed: encode the shards again, or change the model",
            )
        if codes.min() < 0 or codes.max() > np.iinfo("u2").max:
            extreme = codes.min() if codes.min() < 0 else codes.max()
            raise self._code_error(opened, index, int(extreme))
        return codes.ravel()

    def _code_error(self, opened: OpenShard, index: int, code: int) -> DamagedSampleError:
        return DamagedSampleError(
            "code_range",
            f"{opened.describe(index)} has the image code {code} where model.codebook_size="
            f"{self._model.codebook_size}: encode the shards again, or change the model",
        )

    def _decode_text(
        self, rows: slice | np.ndarray, numbers: np.ndarray
    ) -> dict[int, DamagedSampleError]:
        headers = self._headers.text
        header_bytes = headers.shape[1]
        content, sizes = self._text_bytes[rows], self._text_sizes[rows]
        counts = (sizes - header_bytes) // 4
        is_usual = (counts >= 0) & (counts < len(headers)) & (sizes == header_bytes + 4 * counts)
        expected = headers[np.where(is_usual, counts, 0)]
        is_usual &= (content[:, :header_bytes] == expected).all(axis=1)
        ids = content[:, header_bytes:].view("<i4")
        is_legal = self._are_legal(ids) | (np.arange(ids.shape[1]) >= counts[:, None])
        self._text[rows] = _slots(ids, counts)
        failed = {}
        for place in np.flatnonzero(~is_usual | ~is_legal.all(axis=1)).tolist():
            row = int(numbers[place])
            try:
                self._text[row] = self._text_alone(*self._sample(row))
            except DamagedSampleError as error:
                failed[row] = error
        return failed

    def _text_alone(self, opened: OpenShard, index: int) -> np.ndarray:
        """Decode and check one caption, whatever integer type its ids have."""
        ids = _load_array(opened, _TEXT, index)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DamagedSampleError(
                "text_shape",
                f"{opened.describe(index)} has text ids of shape {ids.shape} in {ids.dtype} where "
                "one row of integers is needed: encode the shards again",
            )
        if not self._are_legal(ids).all():
            raise DamagedSampleError(
                "text_range",
                f"{opened.describe(index)} has text ids from {ids.min()} to {ids.max()} where "
                f"{NUM_SPECIAL_IDS} to model.text_vocab_size - 1 = "
                f"{self._model.text_vocab_size - 1} are legal: encode the shards again",
            )
        return np.array(text_slots(ids.tolist(), self._model.text_length))

    def _are_legal(self, ids: np.ndarray) -> np.ndarray:
        is_special = (ids < NUM_SPECIAL_IDS) & (ids != UNKNOWN_ID)
        return ~(is_special | (ids >= self._model.text_vocab_size))


def _slots(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Do to many captions at once what `vocabulary.text_slots` does to one.

    Args:
        ids: first ids of each caption, as many as there are slots, integer [captions, slots].
        counts: number of ids of each caption, which may be more, int64 [captions].
    """
    length = ids.shape[1]
    slots = np.where(np.arange(length) < counts[:, None], ids, PADDING_ID)
    has_end = np.flatnonzero((counts >= 0) & (counts < length))
    slots[has_end, counts[has_end]] = END_OF_TEXT_ID
    for caption in np.flatnonzero(counts > length).tolist():
        slots[caption] = text_slots([*ids[caption].tolist(), UNKNOWN_ID], length)  # one id too many
    return slots


def _load_array(opened: OpenShard, name: str, index: int) -> np.ndarray:
    content = opened.member(name, index)
    try:
        return parse_npy(content)
    except InputError as error:
        raise DamagedSampleError(
            "array",
            f"{opened.describe(index)} has a {name} that is no array ({error}): encode the shards "
            "again",
        ) from error
