"""The identity of a tensor that several ranks hold, by which its copies are compared."""

from typing import NamedTuple


class Copy(NamedTuple):
    """The key of a tensor, equal on every rank that must hold the same values."""

    name: str
    """Name of the parameter, of the one that it is tied to, or of the constant."""
    kind: str
    """Kind of the tensor: weight, float32 weight, first moment, ..."""
    tensor: int | None
    """Index of the tensor rank's shard; None: tensor ranks hold the whole tensor."""
    data: int | None
    """Index of the data-parallel rank's shard; None: replicas hold the whole tensor."""
