from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cache.errors import ConfigError
from cache.nuscenes.frames import Frames
from student.evaluation.results import read_submission
from student.evaluation.submission import write_submission
from student.visualization.video import require_suffix, scene_pictures, write_video
from tests.factories.detections import truths

STRIPES = [np.full((32, 64, 3), (250, 100, 20), dtype=np.uint8), np.full((32, 64, 3), (10, 200, 90), dtype=np.uint8)]
"""Two pictures of one colour each."""


def test_a_gif_shows_each_picture_half_a_second(tmp_path: Path) -> None:
    write_video(tmp_path / "new" / "scene.gif", STRIPES)
    with Image.open(tmp_path / "new" / "scene.gif") as video:
        assert (video.size, video.n_frames, video.info["duration"]) == ((64, 32), 2, 500)
        for number, expected in enumerate(STRIPES):
            video.seek(number)
            np.testing.assert_allclose(np.asarray(video.convert("RGB")), expected, atol=4)


def test_an_mp4_shows_each_picture_half_a_second(tmp_path: Path) -> None:
    write_video(tmp_path / "scene.MP4", STRIPES)
    video = cv2.VideoCapture(str(tmp_path / "scene.MP4"))
    assert video.get(cv2.CAP_PROP_FPS) == 2
    for expected in STRIPES:
        read, picture = video.read()
        assert read
        np.testing.assert_allclose(picture[..., ::-1], expected, atol=12)
    assert not video.read()[0]


def test_other_kinds_of_video_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"written as MP4 or GIF \(--video\); got scene\.avi; expected .* \.mp4 or \.gif"
    ):
        require_suffix(Path("out/scene.avi"))


def test_a_video_that_opencv_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "scene.mp4").mkdir()
    with pytest.raises(ConfigError, match=r"opencv cannot write the video .*scene\.mp4.*Name a \.gif"):
        write_video(tmp_path / "scene.mp4", STRIPES)


def test_pictures_are_of_the_first_scene_with_the_boxes_of_a_score(made_frames: Frames, tmp_path: Path) -> None:
    frames = made_frames.of_splits("all")
    write_submission(truths(frames), frames, tmp_path / "results.json")
    found = read_submission(tmp_path / "results.json")
    steps: list[tuple[int, int]] = []
    pictures = scene_pictures(frames, found, "student", 16.0, progress=lambda *step: steps.append(step))
    first = next(pictures)
    assert first.dtype == np.uint8 and first.shape[2] == 3 and not any(side % 2 for side in first.shape[:2])
    none = next(scene_pictures(frames, found, "student", 16.0, min_score=1.01))
    assert (first != none).any(axis=-1).sum() > 100, "the boxes"
    next(pictures)
    assert list(pictures) == [] and steps == [(1, 2), (2, 2)]
