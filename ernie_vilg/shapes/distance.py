"""Signed distances to the outlines of the shapes, by geometry alone.

Distances are negative inside. Shapes have radius 1; scaling a shape scales its distances.
"""

import numpy as np
from numpy.typing import NDArray

from ernie_vilg.shapes.outlines import CIRCLE, corners_of


def signed_distance(
    shape: str, x: NDArray[np.float64], y: NDArray[np.float64], rotation: float = 0.0
) -> NDArray[np.float64]:
    """Return the distance of points to the outline of a shape of radius 1.

    Args:
        shape: member of `SHAPES`.
        x: distances to the right of the shape's centre, [points].
        y: distances below the shape's centre, [points].
        rotation: degrees, clockwise.

    Returns:
        distances, [points], negative inside.
    """
    if shape == CIRCLE:
        return np.hypot(x, y) - 1.0
    corners = np.array(corners_of(shape, rotation))
    start_x, start_y = corners[:, :1], corners[:, 1:]  # [edges, 1]
    edge_x, edge_y = np.roll(start_x, -1, 0) - start_x, np.roll(start_y, -1, 0) - start_y
    from_x, from_y = x - start_x, y - start_y  # [edges, points]
    along = (from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2)
    along = along.clip(0.0, 1.0)
    distance = np.hypot(from_x - along * edge_x, from_y - along * edge_y).min(axis=0)
    # A ray to the right crosses the outline an odd number of times if it starts inside.
    is_between = (from_y >= 0) != (from_y - edge_y >= 0)
    is_left = (from_x * edge_y - from_y * edge_x < 0) == (edge_y > 0)
    inside = (is_between & is_left).sum(axis=0) % 2 == 1
    return np.where(inside, -distance, distance)
