"""Checks of poses and boxes before they move points: NaN, infinity, a zero quaternion, a box without a size.

Pure functions over rows of numbers; `where` names a row for the message.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from cache.errors import DataError

FARTHEST_M = 1e8
"""Of a position in the map's frame: more than the circumference of the Earth."""

LARGEST_BOX_M = 1e3
NORMS = (0.01, 100.0)
"""Of a quaternion: those of a rotation need not be exactly 1."""

CURE = "Correct this row of the table, or leave the frame out with data.exclude (for a dump: exclude)"

Where = Callable[[int], str]


def require_poses(translations: Float[np.ndarray, "n 3"], rotations: Float[np.ndarray, "n 4"], where: Where) -> None:
    """Raise DataError unless positions (metres) are finite and near, and quaternions w, x, y, z those of rotations."""
    near = (np.abs(translations) <= FARTHEST_M).all(axis=1)  # NaN is not
    _require(near, "a position is not a place", translations, where, f"finite metres within {FARTHEST_M:g}")
    norms = np.linalg.norm(rotations, axis=1)
    turns = (norms >= NORMS[0]) & (norms <= NORMS[1])
    _require(turns, "a rotation is not a quaternion", rotations, where, "w, x, y, z with a norm of about 1")


def require_boxes(
    centers: Float[np.ndarray, "n 3"],
    sizes: Float[np.ndarray, "n 3"],
    rotations: Float[np.ndarray, "n 4"],
    velocities: Float[np.ndarray, "n 3"],
    where: Where,
) -> None:
    """Raise DataError unless all boxes have a place, a size and a heading; a velocity of NaN is an unknown one."""
    require_poses(centers, rotations, where)
    sound = ((sizes > 0) & (sizes <= LARGEST_BOX_M)).all(axis=1)
    _require(sound, "a box has no size", sizes, where, f"width, length, height within 0 .. {LARGEST_BOX_M:g} m")
    finite = ~np.isinf(velocities).any(axis=1)
    _require(finite, "a box's velocity is infinite", velocities, where, "finite metres a second, or NaN")


def require_older(times_us: Int[np.ndarray, "n"], where: Where) -> None:
    """Raise DataError unless each sweep is older than the one before it in the list: `prev` leads to the past."""
    older = np.append(True, np.diff(times_us) < 0)[: len(times_us)]
    _require(older, "a sweep's `prev` does not lead to an older one", times_us[:, None], where, "an earlier timestamp")


def _require(sound: Bool[np.ndarray, "n"], what: str, values: np.ndarray, where: Where, expected: str) -> None:
    if not sound.all():
        row = int(np.argmin(sound))
        raise DataError(what, where=where(row), got=values[row].tolist(), expected=expected, cure=CURE)
