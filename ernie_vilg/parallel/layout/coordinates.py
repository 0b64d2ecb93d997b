"""A rank's coordinates in the layout, numbered as in `groups`, for messages."""

from typing import NamedTuple

from ernie_vilg.parallel.layout.groups import Groups


class Coordinates(NamedTuple):
    """The indices of a rank along the axes of the layout."""

    tensor: int
    """Index along the tensor axis."""
    pipeline: int
    """Index of the stage."""
    data: int
    """Index of the replica."""

    def __str__(self) -> str:
        return f"tensor {self.tensor}, pipeline {self.pipeline}, data {self.data}"


def coordinates_of(rank: int, groups: Groups) -> Coordinates:
    """Return the coordinates of any rank.

    Args:
        rank: index among all ranks.
        groups: any rank's groups, which give the layout.
    """
    rest, tensor = divmod(rank, groups.tensor_size)
    pipeline, data = divmod(rest, groups.data_size)
    return Coordinates(tensor=tensor, pipeline=pipeline, data=data)
