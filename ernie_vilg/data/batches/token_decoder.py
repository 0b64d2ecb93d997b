"""From the bytes of token samples to text slots and image codes, a batch at once.

Each member is read into its row of one buffer, and all rows are decoded together: numpy writes an
array of a known shape always behind the same header, so that comparing headers replaces parsing
them. What is written in another way is parsed alone, and refused where it does not fit the model.
That is what makes a core read tens of thousands of pairs per second.

Source: ours.
"""

import io
import math
import re

import numpy as np

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import OpenShard
from ernie_vilg.errors import InputError
from ernie_vilg.vocabulary import (
    END_OF_TEXT_ID,
    NUM_SPECIAL_IDS,
    PADDING_ID,
    UNKNOWN_ID,
    text_slots,
)

_CODES = "codes.npy"
_TEXT = "text.npy"
Rows = slice | np.ndarray

_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|=])([iu][1248]|f[248]|b1)', "
    rb"'fortran_order': (True|False), 'shape': \((|SIZE,|SIZE(?:, ?SIZE){1,7})\), \} *\n".replace(
        b"SIZE", rb"(?:0|[1-9]\d{0,8})"
    ),
    re.DOTALL,
)
"""Header that numpy writes before numbers: order of bytes, kind and size, layout, shape."""
_MAX_USUAL_IDS = 1024
"""Captions of more ids are parsed alone."""


class TokenHeaders:
    """What numpy writes before arrays of the shapes that a model's samples have."""

    def __init__(self, model: ModelConfig) -> None:
        """Write them once.

        Args:
            model: gives the grid of codes.
        """
        grid = model.image_grid_size
        self.codes = _npy_header(np.empty((grid, grid), np.uint16))
        """Before codes, uint8 [bytes]."""
        self.text = np.stack(
            [_npy_header(np.empty(count, np.int32)) for count in range(_MAX_USUAL_IDS + 1)]
        )
        """Before so many text ids, uint8 [ids, bytes]."""


class TokenDecoder:
    """Reads the codes and ids of one batch."""

    def __init__(self, model: ModelConfig, headers: TokenHeaders, count: int) -> None:
        """Make room.

        Args:
            model: gives the number of slots and the vocabularies' sizes.
            headers: of the model.
            count: rows.
        """
        self._model = model
        self._headers = headers
        self.text = np.full((count, model.text_length), PADDING_ID, np.int64)
        """Text ids, int64 [rows, text_length], end of text and padding included."""
        self.codes = np.zeros((count, model.num_image_tokens), np.int64)
        """Image codes in raster order, int64 [rows, num_image_tokens]."""
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
        self._origins: list[tuple[OpenShard, int] | None] = [None] * count

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        """Read the bytes of samples of one shard for these rows."""
        # One by one: a shard has few rows of a batch, and numpy's calls cost more than they bring.
        codes_sizes, codes_records = opened.index.sizes[_CODES], opened.index.records[_CODES]
        text_sizes, text_records = opened.index.sizes[_TEXT], opened.index.records[_TEXT]
        codes_width, text_width = self._codes_bytes.shape[1], self._text_bytes.shape[1]
        for index, row in zip(indices, rows, strict=True):
            self._origins[row] = opened, index
            size = self._codes_sizes[row] = codes_sizes.item(index)
            start = row * codes_width
            end = start + min(size, codes_width)
            opened.read_into(self._codes_view[start:end], codes_records.item(index))
            size = self._text_sizes[row] = text_sizes.item(index)
            start = row * text_width
            end = start + min(size, text_width)
            opened.read_into(self._text_view[start:end], text_records.item(index))

    def decode(self, rows: list[int]) -> dict[int, DamagedSampleError]:
        """Decode what was fetched; return the rows that cannot be used, with the reason."""
        if not rows:
            return {}
        # All rows, as a rule: then as a slice, which copies nothing.
        chosen = slice(None) if len(rows) == len(self.text) else np.array(sorted(rows))
        numbers = np.arange(len(self.text))[chosen]
        failed = self._decode_codes(chosen, numbers)
        return {**self._decode_text(chosen, numbers), **failed}

    def _decode_codes(self, rows: Rows, numbers: np.ndarray) -> dict[int, DamagedSampleError]:
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
                codes[place] = self._unusual_codes(*self._origin(row))
            except DamagedSampleError as error:
                failed[row] = error
        highest = codes.max(axis=1)
        for place in np.flatnonzero(highest >= self._model.codebook_size).tolist():
            row = int(numbers[place])
            failed[row] = self._code_error(*self._origin(row), int(highest[place]))
        self.codes[rows] = codes
        return failed

    def _origin(self, row: int) -> tuple[OpenShard, int]:
        origin = self._origins[row]
        assert origin is not None, "a row is fetched before it is decoded"
        return origin

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

    def _decode_text(self, rows: Rows, numbers: np.ndarray) -> dict[int, DamagedSampleError]:
        headers = self._headers.text
        header_bytes = headers.shape[1]
        content, sizes = self._text_bytes[rows], self._text_sizes[rows]
        counts = (sizes - header_bytes) // 4
        is_usual = (counts >= 0) & (counts < len(headers)) & (sizes == header_bytes + 4 * counts)
        expected = headers[np.where(is_usual, counts, 0)]
        is_usual &= (content[:, :header_bytes] == expected).all(axis=1)
        ids = content[:, header_bytes:].view("<i4")
        is_legal = self._are_legal(ids) | (np.arange(ids.shape[1]) >= counts[:, None])
        self.text[rows] = _slots(ids, counts)
        failed = {}
        for place in np.flatnonzero(~is_usual | ~is_legal.all(axis=1)).tolist():
            row = int(numbers[place])
            try:
                self.text[row] = self._text_alone(*self._origin(row))
            except DamagedSampleError as error:
                failed[row] = error
        return failed

    def _text_alone(self, opened: OpenShard, index: int) -> np.ndarray:
        """Decode and check one caption, whatever integers its ids are written in."""
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
    """Do to many captions what `vocabulary.text_slots` does to one.

    Args:
        ids: the first of each caption, as many as there are slots, integer [captions, slots].
        counts: ids of each caption, which may be more, int64 [captions].
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


def parse_npy(content: bytes) -> np.ndarray:
    """Return the array of an npy file of numbers.

    numpy's own reader hands the header to Python's parser, and takes memory for what it claims.

    Raises:
        InputError: it is none, or has another length than its header claims.
    """
    header = _NPY_HEADER.match(content)
    if header is None or len(header[0]) != 10 + int.from_bytes(content[8:10], "little"):
        raise InputError(f"{content[:60]!r} is no header of numbers")
    order, kind, is_fortran, shape_text = (part.decode() for part in header.groups())
    dtype = np.dtype(f"{order}{kind}")
    shape = tuple(int(size) for size in shape_text.split(",") if size.strip())
    expected = len(header[0]) + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise InputError(f"{len(content)} bytes where {expected} are needed for {shape} {dtype}")
    if math.prod(size for size in shape if size) > len(content):  # beside a size of 0
        raise InputError(f"{shape} is no shape")
    values = np.frombuffer(content, dtype, offset=len(header[0]))
    return values.reshape(shape, order="F" if is_fortran == "True" else "C")


def _npy_header(array: np.ndarray) -> np.ndarray:
    """Return what numpy writes before an array's values, uint8 [bytes]."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    return content[: len(content) - array.nbytes]
