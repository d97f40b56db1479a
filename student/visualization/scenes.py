"""Boxes in bird's-eye view over a frame's points, and in its camera images; figures without pyplot's global state."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from cache.nuscenes.frame import Camera, Frame
from cache.nuscenes.points import KEY_SWEEP_ONLY, load_points
from student.data.images import read_image
from student.models.nms import footprint_corners

GROUND_TRUTH_COLOUR = "#1b9e3e"
COLOURS = ("#1f5fd0", "#e08a00", "#d01c5b", "#7b3fb5", "#0f9aa8", "#7a5230")
"""Colours of detectors and runs, in their order."""

Boxes = Float[np.ndarray, "M D"]
"""x, y, z (bottom), dx, dy, dz in metres, yaw_rad, ... in the LiDAR frame."""

_EDGES = ([0, 1, 2, 3, 0], [4, 5, 6, 7, 4], [0, 4], [1, 5], [2, 6], [3, 7])
_NEAREST_M = 0.5
"""Boxes with a corner nearer to the image plane are not drawn."""


def corners_m(boxes: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M 8 3"]:
    """The corners of boxes: four of the bottom, the front two first, then four of the top."""
    around = np.roll(footprint_corners(boxes[:, [0, 1, 3, 4, 6]]), 1, axis=1)
    bottom, top = boxes[:, 2], boxes[:, 2] + boxes[:, 5]
    z = np.stack([bottom, top], axis=1).repeat(4, axis=1)
    return np.concatenate([np.tile(around, (1, 2, 1)), z[..., None]], axis=-1)


def plot_bev(frame: Frame, found: Mapping[str, Boxes], reach_m: float | None = None) -> Figure:
    """Plot each detector's boxes and the ground truth over a frame's points, in bird's-eye view.

    Args:
        found: boxes by the detector's name.
        reach_m: half of the side of the plot; by default it contains all ground truth.

    Raises:
        DataError: the frame's LiDAR file cannot be read.
    """
    figure = Figure(figsize=(5.0 * len(found), 5.4), layout="constrained")
    all_axes = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, boxes), colour in zip(all_axes, found.items(), COLOURS, strict=False):
        draw_bev(axes, frame, reach_m)
        draw_boxes_bev(axes, boxes, colour, name)
        axes.set(title=name)
        axes.legend(loc="upper right", fontsize=8)
    return figure


def draw_bev(axes: Axes, frame: Frame, reach_m: float | None = None) -> None:
    """Draw a frame's points, where its LiDAR file is there, and its ground truth, x to the right and y up."""
    reach_m = float(np.abs(frame.boxes[:, :2]).max(initial=10.0)) + 4.0 if reach_m is None else reach_m
    if frame.sweeps[0].path.exists():
        points = load_points(frame, KEY_SWEEP_ONLY)
        axes.scatter(points[:, 0], points[:, 1], s=0.4, c="#9a9a9a", linewidths=0, rasterized=True)
    else:
        axes.text(0.02, 0.02, "no LiDAR file", transform=axes.transAxes)
    draw_boxes_bev(axes, frame.boxes, GROUND_TRUTH_COLOUR, "ground truth")
    axes.set(aspect="equal", xlim=(-reach_m, reach_m), ylim=(-reach_m, reach_m), xlabel="x in m", ylabel="y in m")


def draw_boxes_bev(axes: Axes, boxes: Boxes, colour: str, label: str) -> None:
    """Draw boxes in bird's-eye view, with a line from each centre to the front."""
    for index, corners in enumerate(corners_m(boxes)[:, :4, :2]):
        loop = np.concatenate([corners, corners[:1]])
        axes.plot(*loop.T, color=colour, linewidth=1.3, label=None if index else label)
        nose = np.stack([corners.mean(axis=0), corners[:2].mean(axis=0)])
        axes.plot(*nose.T, color=colour, linewidth=1.3)


def plot_cameras(frame: Frame, boxes: Boxes, name: str) -> Figure:
    """Plot the images with the ground truth and a detector's boxes.

    Raises:
        DataError: an image cannot be read.
    """
    figure = Figure(figsize=(15, 5.8), layout="constrained")
    draw_cameras(figure, frame, boxes, name)
    return figure


def draw_cameras(figure: FigureBase, frame: Frame, boxes: Boxes, name: str) -> None:
    """Draw the same into a figure or a part of one."""
    rows = 1 if len(frame.cameras) <= 3 else 2
    grid = figure.subplots(rows, -(-len(frame.cameras) // rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, camera in zip(grid.flat, frame.cameras, strict=False):
        axes.imshow(read_image(camera, scale=1.0)[0])
        _wireframes(axes, camera, frame.boxes, GROUND_TRUTH_COLOUR)
        _wireframes(axes, camera, boxes, COLOURS[2])
        height, width = camera.size
        axes.set(xlim=(0, width), ylim=(height, 0), title=camera.name)
    figure.suptitle(f"green: ground truth; red: {name}")


def plot_bev_and_cameras(frame: Frame, boxes: Boxes, name: str, reach_m: float | None = None) -> Figure:
    """Plot a frame in bird's-eye view beside its images; `reach_m` as in `plot_bev`."""
    figure = Figure(figsize=(17, 5.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.4), squeeze=False)[0]
    axes = left.subplots()
    draw_bev(axes, frame, reach_m)
    draw_boxes_bev(axes, boxes, COLOURS[2], name)
    draw_cameras(right, frame, boxes, name)
    return figure


def _wireframes(axes: Axes, camera: Camera, boxes: Boxes, colour: str) -> None:
    to_camera = np.linalg.inv(camera.to_lidar)
    for corners in corners_m(boxes):
        in_camera = corners @ to_camera[:3, :3].T + to_camera[:3, 3]
        if (in_camera[:, 2] < _NEAREST_M).any():
            continue
        u, v = ((in_camera / in_camera[:, 2:]) @ camera.intrinsics.T)[:, :2].T
        for ring in _EDGES:
            axes.plot(u[ring], v[ring], color=colour, linewidth=1)
