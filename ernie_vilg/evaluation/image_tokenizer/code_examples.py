"""Places where each code occurs: one per picture, in the first few pictures that have it."""

import numpy as np

from ernie_vilg.evaluation.image_tokenizer.pictures import Place


class CodeExamples:
    """Places of every code; the memory depends on the codebook alone."""

    def __init__(self, codebook_size: int, per_code: int) -> None:
        self._found = np.zeros(codebook_size, np.int64)
        # Shard, sample, row and column of each place.
        self._places = np.zeros((codebook_size, per_code, 4), np.int32)

    def add(self, codes: np.ndarray, places: list[Place]) -> None:
        """Note the codes of some pictures.

        Args:
            codes: int64 [batch, grid, grid].
            places: place of each picture.
        """
        # The first place of every code in every picture, ordered by code, then by picture.
        in_order = codes.reshape(len(codes), -1)
        names = in_order * len(codes) + np.arange(len(codes))[:, None]
        unique, order = np.unique(names, return_index=True)
        ordered = unique // len(codes)
        # The how-manieth place of its code in this batch, counted on from the batches before.
        starts = np.searchsorted(ordered, ordered, side="left")
        ranks = np.arange(len(ordered)) - starts + self._found[ordered]
        kept = ranks < self._places.shape[1]
        picture, row, column = np.unravel_index(order[kept], codes.shape)
        at = np.array(places, np.int32)[picture]
        self._places[ordered[kept], ranks[kept]] = np.column_stack([at, row, column])
        self._found += np.bincount(ordered, minlength=len(self._found))

    def of(self, code: int) -> list[tuple[Place, int, int]]:
        """Return the first places of a code: the picture's, and its row and column in the grid."""
        count = min(int(self._found[code]), self._places.shape[1])
        return [
            (Place(int(shard), int(sample)), int(row), int(column))
            for shard, sample, row, column in self._places[code, :count]
        ]
