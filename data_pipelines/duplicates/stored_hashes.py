"""The distinct PDQ hashes of a database as an array in a file."""

from pathlib import Path

import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

_ROWS_AT_ONCE = 122_880 * 4  # row groups of DuckDB


def store_hashes(
    connection: DuckDBPyConnection, table: str, folder: Path
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Copy a table to files, which the kernel may move out of memory.

    Args:
        connection: database.
        table: table with the columns pdq_0 to pdq_3 and number; at least one row.
        folder: scratch folder.

    Returns:
        the hashes, uint64 [n, 4], and the numbers, int64 [n].
    """
    found = connection.execute(f"select count(*) from {table}").fetchone()
    assert found is not None
    size = int(found[0])
    hashes = np.memmap(folder / "hashes.bin", dtype=np.uint64, mode="w+", shape=(size, 4))
    numbers = np.memmap(folder / "numbers.bin", dtype=np.int64, mode="w+", shape=(size,))
    end = 0
    for start in range(0, size, _ROWS_AT_ONCE):
        block = connection.execute(
            f"select * from {table} where rowid >= {start} and rowid < {start + _ROWS_AT_ONCE}"
        ).fetchnumpy()
        start, end = end, end + len(block["number"])
        for word in range(4):
            hashes[start:end, word] = block[f"pdq_{word}"]
        numbers[start:end] = block["number"]
    assert end == size, (end, size)
    return hashes, numbers


def register_hashes(
    connection: DuckDBPyConnection,
    name: str,
    hashes: NDArray[np.uint64],
    **columns: NDArray[np.int64],
) -> None:
    """Make a view of hashes, uint64 [n, 4], and further columns, int64 [n]."""
    words = {f"pdq_{word}": np.ascontiguousarray(hashes[:, word]) for word in range(4)}
    connection.register(name, {**words, **columns})


def first_numbers(numbers: NDArray[np.int64], component_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the smallest number in the component of each, int64 [n].

    Args:
        numbers: numbers, int64 [n].
        component_of: component of each, in order, int64 [n].
    """
    if not len(numbers):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(component_of, prepend=-1))
    smallest = np.minimum.reduceat(numbers, starts)
    return np.repeat(smallest, np.diff(np.append(starts, len(numbers))))
