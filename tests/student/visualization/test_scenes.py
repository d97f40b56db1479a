from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cache.nuscenes.frames import Frames
from student.visualization.scenes import (
    GROUND_TRUTH_COLOUR,
    corners_m,
    draw_boxes_bev,
    plot_bev,
    plot_bev_and_cameras,
    plot_cameras,
)


def test_corners_of_a_turned_box() -> None:
    # 4 m long and 2 m wide, turned by 90 degrees: it reaches 2 m along y and 1 m along x.
    (corners,) = corners_m(np.array([[10.0, 0.0, -1.0, 4.0, 2.0, 1.5, np.pi / 2]]))
    np.testing.assert_allclose(corners[:, 0].min(), 9)
    np.testing.assert_allclose(corners[:, 1].max(), 2)
    np.testing.assert_allclose(corners[:2, 1], [2, 2], err_msg="the first two corners are the front's")
    np.testing.assert_allclose(sorted(set(corners[:, 2].round(6))), [-1, 0.5])


def test_an_outline_has_a_nose() -> None:
    axes = Figure().subplots()
    draw_boxes_bev(axes, np.array([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.0]]), GROUND_TRUTH_COLOUR, "name")
    loop, nose = (np.stack(line.get_data(), axis=1) for line in axes.lines)
    assert {tuple(corner) for corner in loop.tolist()} == {(3.0, 3.0), (3.0, 1.0), (-1.0, 1.0), (-1.0, 3.0)}
    np.testing.assert_allclose(nose, [[1, 2], [3, 2]])
    assert [text.get_text() for text in axes.legend().get_texts()] == ["name"]


def test_a_bev_plot_has_one_axis_for_each_detector(made_frames: Frames) -> None:
    frame = made_frames[0]
    figure = plot_bev(frame, {"a": frame.boxes, "b": frame.boxes[:0]}, reach_m=20)
    FigureCanvasAgg(figure).draw()
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    counts = [len(axes.lines) for axes in figure.axes]
    assert counts == [4 * len(frame.boxes), 2 * len(frame.boxes)], "two lines a box, of the truth and of the detector"
    assert figure.axes[0].get_xlim() == (-20, 20)


def test_the_plot_holds_all_ground_truth_by_default(made_frames: Frames) -> None:
    frame = made_frames[0]
    farthest = np.abs(frame.boxes[:, :2]).max()
    assert plot_bev(frame, {"a": frame.boxes[:0]}).axes[0].get_xlim()[1] >= farthest


def test_cameras_show_boxes_where_they_are_visible(made_frames: Frames) -> None:
    frame = made_frames[0]
    figure = plot_cameras(frame, frame.boxes[:0], "nothing")
    FigureCanvasAgg(figure).draw()
    assert [axes.get_title() for axes in figure.axes] == [camera.name for camera in frame.cameras]
    assert "nothing" in figure.get_suptitle()
    camera = frame.cameras[1]
    # A box straight ahead of the front camera, 10 m away, is drawn around the image's centre there.
    ahead = camera.to_lidar @ np.array([0.0, 0.0, 10.0, 1.0])
    box = np.array([[ahead[0], ahead[1], ahead[2] - 0.5, 1.0, 1.0, 1.0, 0.0]])
    drawn = plot_cameras(frame, box, "ahead").axes
    more = [len(axes.lines) - len(plain.lines) for axes, plain in zip(drawn, figure.axes, strict=True)]
    assert more == [6, 6, 6, 0, 0, 0], "it is in front of three image planes; axes clip what is beside the image"
    u, v = np.concatenate([np.stack(line.get_data(), axis=1) for line in drawn[1].lines[-6:]]).mean(axis=0)
    np.testing.assert_allclose([u, v], camera.intrinsics[:2, 2], atol=2)


def test_as_many_cameras_as_there_are(made_frames: Frames) -> None:
    frame = made_frames[0]
    for count, places in ((1, 1), (3, 3), (5, 6)):
        some = replace(frame, cameras=frame.cameras[:count])
        axes = plot_cameras(some, frame.boxes[:0], "nothing").axes
        assert [each.get_title() for each in axes] == [c.name for c in some.cameras] + [""] * (places - count)


def test_a_frame_without_its_lidar_file_says_so(made_frames: Frames, tmp_path: Path) -> None:
    frame = made_frames[0]
    gone = replace(frame, sweeps=(replace(frame.sweeps[0], path=tmp_path / "gone.pcd.bin"),))
    (axes,) = plot_bev(gone, {"a": frame.boxes}).axes
    assert [text.get_text() for text in axes.texts] == ["no LiDAR file"]
    assert len(axes.lines) == 4 * len(frame.boxes)


def test_cameras_are_beside_the_bev_plot(made_frames: Frames) -> None:
    frame = made_frames[0]
    figure = plot_bev_and_cameras(frame, frame.boxes, "a")
    FigureCanvasAgg(figure).draw()
    assert [axes.get_xlabel() for axes in figure.axes] == ["x in m"] + [""] * 6
