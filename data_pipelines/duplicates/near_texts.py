"""Captions that share most of their shingles, found by MinHash and verified exactly.

The shingles of a caption are all runs of three characters after normalisation; a shorter caption is
one shingle. Captions with an equal band of MinHash values are compared by the exact Jaccard
similarity of their shingles, so that MinHash decides only what is compared.

Source: Broder 1997, "On the resemblance and containment of documents"; MinHash by rensa.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from data_pipelines.curation.extras import import_extra
from data_pipelines.duplicates.components import POSITION_BITS, Components, sorted_entries
from data_pipelines.duplicates.content_hashes import normalise_text
from data_pipelines.duplicates.near_hashes import RECALL
from data_pipelines.duplicates.rows import count_of

_SHINGLE = 3
_CHARACTER_BITS = 21  # of a code point
_PERMUTATIONS = 128
_SEED = 31
_TEXTS_AT_ONCE = 1 << 16
_PAIRS_AT_ONCE = 1 << 14


@dataclass(frozen=True, kw_only=True)
class NearTexts:
    """Texts with a near one before them, each known by the number of its first row."""

    numbers: NDArray[np.int64]
    firsts: NDArray[np.int64]
    """First text of the cluster of each."""
    similarities: NDArray[np.float64]
    """Jaccard similarity to the first text; below the threshold where others connect them."""
    num_texts: int
    num_clusters: int


def find_near_texts(connection: DuckDBPyConnection, similarity: float, folder: Path) -> NearTexts:
    """Find the near ones among distinct texts.

    Args:
        connection: database with the view `candidates` and the table `distinct_texts`.
        similarity: smallest Jaccard similarity of near texts.
        folder: scratch folder.

    Raises:
        InputError: rensa is not installed.
    """
    rensa = import_extra("rensa", extra="curation", setting="curation.deduplication.near_texts")
    size = count_of(connection, "distinct_texts")
    nothing = np.zeros(0, dtype=np.int64)
    if size == 0:
        return NearTexts(
            numbers=nothing, firsts=nothing, similarities=np.zeros(0), num_texts=0, num_clusters=0
        )
    texts = _Texts(connection, size, rensa, similarity, folder)
    components = Components(size, folder / "text-components.bin")

    def is_near(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        return texts.similarities(left, right) >= similarity

    for band in range(len(texts.bands)):
        for entries in sorted_entries(size, partial(texts.entries, band), folder):
            components.connect_equal_keys(entries, is_near)
    members, first = components.groups()
    others = members != first
    members, first = members[others], first[others]
    return NearTexts(
        numbers=texts.numbers[members],
        firsts=texts.numbers[first],
        similarities=texts.similarities(members, first),
        num_texts=size,
        num_clusters=len(np.unique(first)),
    )


def choose_band_size(similarity: float) -> int:
    """Return how many MinHash values make a band.

    It is the largest number with which two texts at the threshold share a band with a probability
    of RECALL; a single one, where that is not enough.
    """
    for size in range(_PERMUTATIONS, 1, -1):
        bands = _PERMUTATIONS // size
        if 1 - (1 - similarity**size) ** bands >= RECALL:
            return size
    return 1


class _Texts:
    """Shingles and bands of all texts, in files that the kernel may move out of memory."""

    def __init__(
        self, connection: DuckDBPyConnection, size: int, rensa: Any, similarity: float, folder: Path
    ) -> None:
        band_size = choose_band_size(similarity)
        self.numbers = np.memmap(folder / "text-numbers.bin", np.int64, "w+", shape=(size,))
        self.bands = np.memmap(
            folder / "bands.bin", np.uint32, "w+", shape=(_PERMUTATIONS // band_size, size)
        )
        self._ends = np.memmap(folder / "shingle-ends.bin", np.int64, "w+", shape=(size,))
        shingles_file = folder / "shingles.bin"
        start = end = 0
        with shingles_file.open("wb") as file:
            for numbers, captions in _blocks(connection):
                shingles, offsets = shingles_of([normalise_text(one) for one in captions])
                block = slice(start, start + len(numbers))
                self.numbers[block] = numbers
                self._ends[block] = end + offsets[1:]
                self.bands[:, block] = _bands_of(rensa, shingles, offsets, band_size)
                file.write(shingles.tobytes())
                start, end = block.stop, end + len(shingles)
        assert start == size, (start, size)
        self._shingles = np.memmap(shingles_file, np.uint64, "r")

    def entries(self, band: int, start: int, end: int) -> NDArray[np.uint64]:
        """Return a band and the position of texts, uint64 [end - start]."""
        key = self.bands[band, start:end].astype(np.uint64) << np.uint64(POSITION_BITS)
        return np.asarray(key | np.arange(start, end, dtype=np.uint64))

    def similarities(
        self, left: NDArray[np.int64], right: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the Jaccard similarities of pairs of texts, float64 [pairs]."""
        blocks = [
            self._similarities(left[start : start + _PAIRS_AT_ONCE], right[start:][:_PAIRS_AT_ONCE])
            for start in range(0, len(left), _PAIRS_AT_ONCE)
        ]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _similarities(
        self, left: NDArray[np.int64], right: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        one, pair_of_one = self._gather(left)
        other, pair_of_other = self._gather(right)
        shingles = np.concatenate([one, other])
        pairs = np.concatenate([pair_of_one, pair_of_other])
        order = np.lexsort((shingles, pairs))
        shingles, pairs = shingles[order], pairs[order]
        shared = (shingles[1:] == shingles[:-1]) & (pairs[1:] == pairs[:-1])
        both = np.bincount(pairs[1:][shared], minlength=len(left))
        union = np.bincount(pairs, minlength=len(left)) - both
        return both / union

    def _gather(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the shingles of texts, one after another, and which text each is of."""
        ends = self._ends[texts]
        starts = np.where(texts == 0, 0, self._ends[texts - 1])
        sizes = ends - starts
        text = np.repeat(np.arange(len(texts)), sizes)
        within = np.arange(len(text)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self._shingles[starts[text] + within], text


def shingles_of(texts: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the distinct shingles of texts.

    Args:
        texts: normalised captions, none empty.

    Returns:
        shingles, three code points in one number, uint64 [shingles], sorted within a text; and
        where each text begins and the last one ends, int64 [texts + 1].
    """
    # A text of one or two characters gets empty ones behind.
    padded = [text.ljust(_SHINGLE, "\0") for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
    points = points.astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    counts = lengths - (_SHINGLE - 1)
    text = np.repeat(np.arange(len(texts)), counts)
    first = np.cumsum(lengths) - lengths
    at = first[text] + np.arange(len(text)) - (np.cumsum(counts) - counts)[text]
    shingles = np.zeros(len(at), dtype=np.uint64)
    for place in range(_SHINGLE):
        shingles = (shingles << np.uint64(_CHARACTER_BITS)) | points[at + place]
    order = np.lexsort((shingles, text))
    shingles, text = shingles[order], text[order]
    is_new = np.ones(len(text), dtype=np.bool_)
    is_new[1:] = (shingles[1:] != shingles[:-1]) | (text[1:] != text[:-1])
    sizes = np.bincount(text[is_new], minlength=len(texts))
    return shingles[is_new], np.concatenate([[0], np.cumsum(sizes)])


def _bands_of(
    rensa: Any, shingles: NDArray[np.uint64], offsets: NDArray[np.int64], band_size: int
) -> NDArray[np.uint32]:
    """Return a hash of every band of MinHash values, uint32 [bands, texts]."""
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        _mixed(shingles), offsets.astype(np.uint64), _PERMUTATIONS, _SEED
    )
    digests = np.array(matrix.to_rows(), dtype=np.uint64)
    num_bands = _PERMUTATIONS // band_size
    bands = digests[:, : num_bands * band_size].reshape(len(digests), num_bands, band_size)
    mixed = np.zeros(bands.shape[:2], dtype=np.uint64)
    for place in range(band_size):
        mixed = _mixed(mixed ^ bands[:, :, place])
    return (mixed >> np.uint64(32)).astype(np.uint32).T


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes of numbers: the last steps of splitmix64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _blocks(connection: DuckDBPyConnection) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """Yield the numbers and captions of the first rows of all texts, in order."""
    rows = connection.execute("""
        select candidates.number, caption
        from candidates join distinct_texts using (number) order by number
    """)
    while block := rows.fetchmany(_TEXTS_AT_ONCE):
        numbers, captions = zip(*block, strict=True)
        yield np.array(numbers, dtype=np.int64), list(captions)
