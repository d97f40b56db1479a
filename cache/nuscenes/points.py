"""LiDAR points of a frame: the accumulated sweeps for the teacher, and the key sweep in the cameras."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from cache.errors import DataError
from cache.geometry.views import transform_points
from cache.nuscenes.frame import EXCLUDE, SKIP_MISSING, Frame
from cache.spec import PointPipeline

POINT_BYTES = 5 * 4
"""x, y, z, intensity, ring as float32."""

MOST_NEGATIVE = 0.01
"""Of a file's intensities."""

KEY_SWEEP_ONLY = PointPipeline(past_sweeps=0, pad_empty_sweeps=False)


def load_points(frame: Frame, pipeline: PointPipeline) -> Float[np.ndarray, "N 5"]:
    """Points of a key frame and its past sweeps in the key frame's LiDAR.

    Returns:
        float32 (N, 5): x, y, z in metres, intensity 0 .. 255, lag in seconds (0 for the key frame's own).

    Raises:
        DataError: a file is missing or cut short, or holds a value that is not finite.
    """
    return np.concatenate(load_sweeps(frame, pipeline))


def load_sweeps(frame: Frame, pipeline: PointPipeline) -> list[Float[np.ndarray, "_ 5"]]:
    """The points of `load_points`, sweep by sweep; the first are the key frame's own."""
    key, *past = frame.sweeps[: 1 + pipeline.past_sweeps]
    own = _read_sweep(key.path)
    clouds = [own]
    if not past and pipeline.pad_empty_sweeps:
        clouds += [own[_is_far(own, pipeline.remove_close_m)]] * pipeline.past_sweeps
    for sweep in past:
        points = _read_sweep(sweep.path)
        points = transform_points(points[_is_far(points, pipeline.remove_close_m)], sweep.to_key)
        points[:, 4] = sweep.lag_s
        clouds.append(points)
    return clouds


def camera_points(
    frame: Frame, nearest_m: float = 0.0, key_sweep: Float[np.ndarray, "N 5"] | None = None
) -> list[Float[np.ndarray, "_ 3"]]:
    """u, v (original pixels) and depth (metres along the optical axis) of the key sweep's points in each image.

    Args:
        nearest_m: points that are not farther away than this are left out.
        key_sweep: the key frame's own points if they have been loaded already.

    Raises:
        DataError: see `load_points`.
    """
    own = load_points(frame, KEY_SWEEP_ONLY) if key_sweep is None else key_sweep
    points = own[:, :3].astype(np.float64)
    found = []
    for camera in frame.cameras:
        lidar_to_camera = np.linalg.inv(camera.to_lidar)
        in_camera = points @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]
        in_front = in_camera[in_camera[:, 2] > nearest_m]
        pixels = (in_front / in_front[:, 2:]) @ camera.intrinsics[:2].T
        height, width = camera.size
        inside = ((pixels >= -0.5) & (pixels < (width - 0.5, height - 0.5))).all(axis=1)
        found.append(np.column_stack([pixels, in_front[:, 2]])[inside])
    return found


def _read_sweep(path: Path) -> Float[np.ndarray, "N 5"]:
    """nuScenes' .pcd.bin: x, y, z, intensity, ring as float32; the ring is replaced by a lag of 0."""
    try:
        content = bytearray(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError("a LiDAR file is missing", where=path, cure=SKIP_MISSING) from error
    if not content or len(content) % POINT_BYTES:
        raise DataError(
            "a LiDAR file is cut short",
            where=path,
            got=f"{len(content)} bytes",
            expected=f"{POINT_BYTES} for each point, and at least one point",
            cure=EXCLUDE,
        )
    values = np.frombuffer(content, dtype=np.float32)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0]) // 5
        raise DataError(
            "a LiDAR file holds a value that is not finite",
            where=path,
            got=f"point {bad}: {values[5 * bad : 5 * bad + 5].tolist()}",
            cure=EXCLUDE,
        )
    points = values.reshape(-1, 5)
    _require_five_columns(points, path)
    points[:, 4] = 0
    return points


def _require_five_columns(points: Float[np.ndarray, "N 5"], path: Path) -> None:
    """Raise DataError where a file of four columns is read as one of five: then x, y and z are in every column."""
    negative = int((points[:, 3] < 0).sum())
    if points.size % 4 == 0 and negative > MOST_NEGATIVE * len(points):
        raise DataError(
            "a LiDAR file does not seem to have five columns",
            where=path,
            got=f"an intensity below 0 in {negative:,} of {len(points):,} points",
            expected="x, y, z, intensity and ring, float32",
            cure="Write five columns, with a ring of 0 where it is not known, and intensities of 0 or more",
        )


def _is_far(points: Float[np.ndarray, "N 5"], radius_m: float) -> Bool[np.ndarray, "N"]:
    return (np.abs(points[:, :2]) >= radius_m).any(axis=1)
