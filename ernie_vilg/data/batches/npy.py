"""Arrays from the bytes of npy files, without running a parser over foreign headers.

numpy's own reader hands the header to Python's parser and allocates memory for the claimed shape.
"""

import io
import math
import re

import numpy as np

from ernie_vilg.errors import InputError

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|=])([iu][1248]|f[248]|b1)', "
    rb"'fortran_order': (True|False), 'shape': \((|SIZE,|SIZE(?:, ?SIZE){1,7})\), \} *\n".replace(
        b"SIZE", rb"(?:0|[1-9]\d{0,8})"
    ),
    re.DOTALL,
)
"""Header that numpy writes before numbers: byte order, kind and size, layout, shape."""


def parse_npy(content: bytes) -> np.ndarray:
    """Return the array of an npy file of numbers.

    Raises:
        InputError: it is no such file, or has another length than its header claims.
    """
    header = _HEADER.match(content)
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


def npy_header(array: np.ndarray) -> np.ndarray:
    """Return the header that numpy writes before an array's values, uint8 [bytes]."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    return content[: len(content) - array.nbytes]
