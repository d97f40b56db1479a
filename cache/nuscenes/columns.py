"""What both stages need of nuScenes' tables, as columns: one row for a key frame, a sensor's file, a box."""

from dataclasses import dataclass

import msgspec
import numpy as np
from jaxtyping import Float, Int, Shaped

NO_ROW = -1
"""In a column of row numbers: there is no such row."""

SEVERAL_ATTRIBUTES = -2
"""In `box_attribute`: more than one."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """N key frames, D files of LiDARs and cameras, P poses, K calibrations, B boxes, each in its table's order.

    Row numbers are NO_ROW where there is none. Files are all of the LiDARs', and the cameras' of key frames;
    boxes are sorted by key frame. Poses are x, y, z in metres and the quaternion w, x, y, z.

    sample_order: key frames by token, for a binary search.
    sample_boxes: key frame n has the boxes sample_boxes[n] .. sample_boxes[n + 1] - 1.
    sample_files: a key frame's file for each channel of `Names.channels`.
    file_size: height and width in pixels.
    box_size: width, length, height in metres.
    box_velocity: m/s in nuScenes' map frame; NaN where it is not known.
    box_points: LiDAR and radar points; -1 where the tables say that nobody counted.
    """

    sample_token: Shaped[np.ndarray, "N"]
    sample_order: Int[np.ndarray, "N"]
    sample_scene: Int[np.ndarray, "N"]
    sample_time_us: Int[np.ndarray, "N"]
    sample_previous: Int[np.ndarray, "N"]
    sample_boxes: Int[np.ndarray, "N+1"]
    sample_files: Int[np.ndarray, "N channels"]
    file_name: Shaped[np.ndarray, "D"]
    file_time_us: Int[np.ndarray, "D"]
    file_previous: Int[np.ndarray, "D"]
    file_size: Int[np.ndarray, "D 2"]
    file_pose: Int[np.ndarray, "D"]
    file_calibration: Int[np.ndarray, "D"]
    pose: Float[np.ndarray, "P 7"]
    calibration: Float[np.ndarray, "K 7"]
    intrinsics: Float[np.ndarray, "K 3 3"]
    box_center: Float[np.ndarray, "B 3"]
    box_size: Float[np.ndarray, "B 3"]
    box_rotation: Float[np.ndarray, "B 4"]
    box_velocity: Float[np.ndarray, "B 3"]
    box_points: Int[np.ndarray, "B 2"]
    box_category: Int[np.ndarray, "B"]
    box_attribute: Int[np.ndarray, "B"]
    box_previous: Int[np.ndarray, "B"]
    box_next: Int[np.ndarray, "B"]


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What the columns' small numbers stand for."""

    scenes: tuple[str, ...]
    channels: tuple[str, ...]
    """Of the LiDARs and the cameras together."""
    lidars: tuple[str, ...]
    cameras: tuple[str, ...]
    categories: tuple[str, ...]
    classes: tuple[str | None, ...]
    """nuScenes' detection class of each category."""
    attributes: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    """nuScenes' own splits, as scenes' names."""
    official: tuple[str, ...]
    """The names of all categories that nuScenes has."""
