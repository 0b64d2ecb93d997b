"""Where a rank stands in the layout, for what people read.

Source: ours; the numbering is that of `groups`.
"""

from typing import NamedTuple

from ernie_vilg.parallel.layout.groups import Groups


class Place(NamedTuple):
    """A rank's coordinates."""

    tensor: int
    """Along the tensor axis."""
    pipeline: int
    """Stage."""
    data: int
    """Replica."""

    def __str__(self) -> str:
        return f"tensor {self.tensor}, pipeline {self.pipeline}, data {self.data}"


def place_of(rank: int, groups: Groups) -> Place:
    """Return the coordinates of any rank.

    Args:
        rank: among all.
        groups: gives the layout; of whichever rank.
    """
    rest, tensor = divmod(rank, groups.tensor_size)
    pipeline, data = divmod(rest, groups.data_size)
    return Place(tensor=tensor, pipeline=pipeline, data=data)
