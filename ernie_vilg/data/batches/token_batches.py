"""Token samples become batches: text slots, image codes and, where asked for, pictures.

Each member is read into its row of one buffer, and all rows are decoded together: numpy writes an
array of a known shape always behind the same header, so comparing headers replaces parsing them.
An array that is written in another way is parsed alone, and refused where it does not fit the
model. So a core reads tens of thousands of pairs per second.

Of a picture with several captions the batch gets the one that `data.batches.captions` chooses. A
question and its answer that do not fit the slots are read alone, because their question is cut.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.captions import (
    MOST_IDS_AT_ONCE,
    CaptionChoice,
    caption_choice,
    check_answer,
    has_answer,
)
from ernie_vilg.data.batches.npy import npy_header, parse_npy
from ernie_vilg.data.batches.pictures import EncodedPicture, fetch_picture
from ernie_vilg.data.sequence.sample_sequence import NewRows, SampleSequence
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import OpenShard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    END_OF_TEXT_ID,
    NUM_SPECIAL_IDS,
    PADDING_ID,
    UNKNOWN_ID,
    text_slots,
)

_CODES = "codes.npy"
_TEXT = "text.npy"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some pairs, ready for the model, on the CPU."""

    text: Tensor
    """Text ids, int64 [batch, text_length], end of text and padding included."""
    codes: Tensor
    """Image codes in raster order, int64 [batch, num_image_tokens]."""
    pixels: Tensor | None = None
    """The pictures, uint8 [batch, 3, height, width]; only where they were asked for."""

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
        captions = caption_choice([source.manifest for source in self.sources], self.seed)
        return lambda positions: TokenRows(self.model, headers, positions, image_size, captions)


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
            [npy_header(np.empty(count, np.int32)) for count in range(MOST_IDS_AT_ONCE + 1)]
        )
        """Header by number of text ids, uint8 [ids, bytes]; longer texts are parsed alone."""


class TokenRows:
    """The codes, text and pictures of some positions, while samples are decoded into them."""

    def __init__(
        self,
        model: ModelConfig,
        headers: _Headers,
        positions: np.ndarray,
        image_size: int | None,
        captions: CaptionChoice,
    ) -> None:
        """Allocate the arrays.

        Args:
            model: model that gives the number of slots and the sizes of the vocabularies.
            headers: headers of the model's arrays.
            positions: positions of the rows, which choose among several captions, int64 [rows].
            image_size: pixels per side of the pictures; None reads none.
            captions: choice among the captions of a picture.
        """
        count = len(positions)
        self._model = model
        self._headers = headers
        self._captions = captions
        self._positions = positions
        self._max_captions = np.ones(count, np.int64)
        self._has_questions = np.zeros(count, np.bool_)
        self._text = np.full((count, model.text_length), PADDING_ID, np.int64)
        self._codes = np.zeros((count, model.num_image_tokens), np.int64)
        self._codes_bytes = np.zeros(
            (count, len(headers.codes) + 2 * model.num_image_tokens), np.uint8
        )
        # Of a picture's only caption, ids beyond the slots reach no model: they are neither read
        # nor checked. Several captions, and questions with their answers, are read whole.
        max_ids = max(model.text_length, captions.max_ids)
        self._text_bytes = np.zeros((count, headers.text.shape[1] + 4 * max_ids), np.uint8)
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
        text_bytes = text_width
        if self._captions.is_read_whole[data_set]:
            self._max_captions[rows] = self._captions.max_captions[data_set]
            self._has_questions[rows] = self._captions.has_questions[data_set]
        else:
            text_bytes = self._headers.text.shape[1] + 4 * self._model.text_length
        for index, row in zip(indices, rows, strict=True):
            self._samples[row] = opened, index
            size = self._codes_sizes[row] = codes_sizes.item(index)
            start = row * codes_width
            end = start + min(size, codes_width)
            opened.read_into(self._codes_view[start:end], codes_records.item(index))
            size = self._text_sizes[row] = text_sizes.item(index)
            start = row * text_width
            end = start + min(size, text_bytes)
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
        headers, length = self._headers.text, self._model.text_length
        header_bytes = headers.shape[1]
        content, sizes = self._text_bytes[rows], self._text_sizes[rows]
        counts = (sizes - header_bytes) // 4
        is_usual = (counts >= 0) & (counts < len(headers)) & (sizes == header_bytes + 4 * counts)
        expected = headers[np.where(is_usual, counts, 0)]
        is_usual &= (content[:, :header_bytes] == expected).all(axis=1)
        all_ids = content[:, header_bytes:].view("<i4")
        ids = all_ids[:, :length]
        is_legal = self._are_legal(ids) | (np.arange(length) >= counts[:, None])
        is_sound = is_legal.all(axis=1)
        several = np.flatnonzero((self._max_captions[rows] > 1) | self._has_questions[rows])
        if len(several):
            is_usual[several] &= counts[several] <= all_ids.shape[1]
            chosen = self._choose(all_ids[several], counts[several], numbers[several])
            ids[several], counts[several], is_sound[several] = chosen
        self._text[rows] = _slots(ids, counts)
        failed = {}
        for place in np.flatnonzero(~is_usual | ~is_sound).tolist():
            row = int(numbers[place])
            try:
                self._text[row] = self._text_alone(row)
            except DamagedSampleError as error:
                failed[row] = error
        return failed

    def _choose(
        self, ids: np.ndarray, counts: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose one of the several captions of each row.

        Args:
            ids: ids of all captions of each row, integer [rows, ids].
            counts: number of ids of each row, int64 [rows].
            rows: numbers of the rows, int64 [rows].

        Returns:
            the first ids of each caption, integer [rows, slots], the caption's number of ids, and
            whether all ids of the row are legal and in the right shape, and a question and its
            answer fit.
        """
        counts = counts.clip(0, ids.shape[1])  # other counts are of rows that are parsed alone
        chosen = self._captions.choose(
            ids, counts, self._positions[rows], num_ids=self._model.text_length
        )
        is_legal = self._are_legal(ids) | chosen.is_end
        asks = self._has_questions[rows]
        is_legal |= (ids == BEGIN_OF_TEXT_ID) & asks[:, None]
        is_legal |= np.arange(ids.shape[1]) >= counts[:, None]
        is_sound = is_legal.all(axis=1) & chosen.has_shape(self._max_captions[rows])
        fits = (chosen.counts < chosen.ids.shape[1]) & has_answer(chosen.ids, chosen.counts)
        return chosen.ids, chosen.counts, is_sound & (fits | ~asks)

    def _text_alone(self, row: int) -> np.ndarray:
        """Decode and check one row's text, whatever integer type its ids have."""
        opened, index = self._sample(row)
        ids = _load_array(opened, _TEXT, index)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DamagedSampleError(
                "text_shape",
                f"{opened.describe(index)} has text ids of shape {ids.shape} in {ids.dtype} where "
                "one row of integers is needed: encode the shards again",
            )
        is_legal = self._are_legal(ids)
        max_captions = int(self._max_captions[row])
        if max_captions > 1:
            is_legal |= ids == END_OF_TEXT_ID
        if self._has_questions[row]:
            is_legal |= ids == BEGIN_OF_TEXT_ID
        if not is_legal.all():
            raise DamagedSampleError(
                "text_range",
                f"{opened.describe(index)} has text ids from {ids.min()} to {ids.max()} where "
                f"{NUM_SPECIAL_IDS} to model.text_vocab_size - 1 = "
                f"{self._model.text_vocab_size - 1} are legal: encode the shards again",
            )
        if max_captions > 1:
            position = int(self._positions[row])
            ids = self._captions.choose_one(ids, position, max_captions, opened.describe(index))
        check_answer(ids, opened.describe(index))
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
