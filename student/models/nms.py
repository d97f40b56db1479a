"""Non-maximum suppression of boxes in bird's-eye view; boxes are sorted by descending score."""

from collections.abc import Callable

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int


def circle_nms(centers_m: Float[np.ndarray, "M 2"], radius_m: float, limit: int) -> Int[np.ndarray, "k"]:
    """Indices of at most `limit` centres, none within `radius_m` of a better one that was kept."""

    def covered(best: int, others: Int[np.ndarray, "_"]) -> Bool[np.ndarray, "_"]:
        return np.linalg.norm(centers_m[others] - centers_m[best], axis=1) <= radius_m

    return _greedy(len(centers_m), covered, limit)


def rotated_nms(footprints: Float[np.ndarray, "M 5"], threshold: float, limit: int) -> Int[np.ndarray, "k"]:
    """Indices of at most `limit` boxes, none overlapping a better one that was kept.

    Args:
        footprints: x, y, dx, dy in metres, yaw_rad.
        threshold: the intersection over union above which two boxes overlap.
    """
    corners_m = footprint_corners(footprints)
    polygons = shapely.polygons(corners_m)
    areas = shapely.area(polygons)
    low, high = corners_m.min(axis=1), corners_m.max(axis=1)

    def covered(best: int, others: Int[np.ndarray, "_"]) -> Bool[np.ndarray, "_"]:
        result = ((low[others] < high[best]) & (high[others] > low[best])).all(axis=1)
        near = others[result]
        shared = shapely.area(shapely.intersection(polygons[near], polygons[best]))
        result[result] = shared > threshold * (areas[near] + areas[best] - shared)
        return result

    return _greedy(len(footprints), covered, limit)


def footprint_corners(footprints: Float[np.ndarray, "M 5"]) -> Float[np.ndarray, "M 4 2"]:
    """The corners of boxes in bird's-eye view, counter-clockwise from the front left one, in metres."""
    x, y, dx, dy, yaw_rad = np.moveaxis(footprints.astype(np.float64), -1, 0)[..., None]
    along, across = dx / 2 * np.array([1, -1, -1, 1]), dy / 2 * np.array([1, 1, -1, -1])
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.stack([x + cosine * along - sine * across, y + sine * along + cosine * across], axis=-1)


def _greedy(
    count: int, covered: Callable[[int, Int[np.ndarray, "_"]], Bool[np.ndarray, "_"]], limit: int
) -> Int[np.ndarray, "k"]:
    """Keep the best remaining one and drop those it covers, until none is left or `limit` are kept."""
    order, kept = np.arange(count), list[int]()
    while len(order) and len(kept) < limit:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[~covered(best, order)]
    return np.asarray(kept, dtype=np.int64)
