"""A scene as a video: bird's-eye view and cameras of its key frames with a detector's boxes, as MP4 or GIF."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cache.errors import ConfigError
from cache.nuscenes.frames import Frames
from student.evaluation.results import boxes_of
from student.visualization.scenes import plot_bev_and_cameras

FRAMES_PER_S = 2.0
"""nuScenes' key frames: a video runs as fast as the scene did."""

SUFFIXES = (".mp4", ".gif")
DPI = 80

Picture = UInt8[np.ndarray, "height width 3"]


def require_suffix(path: Path) -> None:
    """Raise ConfigError unless a video's file has one of SUFFIXES."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            "a video is written as MP4 or GIF",
            where="--video",
            got=path.name,
            expected=f"a name that ends with {' or '.join(SUFFIXES)}",
            cure="Rename it",
        )


def scene_pictures(
    frames: Frames,
    found: dict[str, list[dict]],
    name: str,
    reach_m: float,
    min_score: float = 0.0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[Picture]:
    """The frames of the first scene, in the order of time, in bird's-eye view and in the cameras; RGB.

    Args:
        found: the detections of each token, of `read_submission`.
        name: the detector's.
        reach_m: half of the side of the bird's-eye view.
        min_score: boxes of a lower score are left out.
        progress: called with (done, total) after each frame.

    Raises:
        DataError: a file of a frame cannot be read.
    """
    of_scene = frames.tables.columns.sample_scene[frames.rows()]
    tokens = [token for token, scene in zip(frames.tokens, of_scene.tolist(), strict=True) if scene == of_scene[0]]
    in_time = sorted((frames[token] for token in tokens), key=lambda frame: frame.timestamp_us)
    for done, frame in enumerate(in_time, start=1):
        boxes = boxes_of([box for box in found[frame.token] if box["detection_score"] >= min_score], frame)
        figure = plot_bev_and_cameras(frame, boxes, f"{name}, score at least {min_score:g}", reach_m)
        figure.axes[0].set_title(f"{frame.scene}, {(frame.timestamp_us - in_time[0].timestamp_us) / 1e6:.1f} s")
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        yield np.array(canvas.buffer_rgba())[..., :3]
        progress(done, len(in_time))


def write_video(path: Path, pictures: Iterable[Picture]) -> None:
    """Write pictures of one size as the kind of video that the suffix says: MP4 (VP9, which browsers play) or GIF.

    Raises:
        ConfigError: another suffix, or this opencv cannot write it.
    """
    require_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
    write(path, iter(pictures))


def _write_gif(path: Path, pictures: Iterator[Picture]) -> None:
    first, *others = (Image.fromarray(picture).quantize() for picture in pictures)
    first.save(path, save_all=True, append_images=others, duration=round(1000 / FRAMES_PER_S), loop=0)


def _write_mp4(path: Path, pictures: Iterator[Picture]) -> None:
    first = next(pictures)
    height, width = first.shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"vp09"), FRAMES_PER_S, (width, height))
    if not video.isOpened():
        raise ConfigError(
            "opencv cannot write the video",
            where=path,
            got=f"opencv {cv2.__version__}",
            expected="opencv-python-headless of PyPI, which encodes VP9, and a folder that can be written",
            cure="Name a .gif, or install it",
        )
    for picture in chain([first], pictures):
        video.write(np.ascontiguousarray(picture[..., ::-1]))
    video.release()
