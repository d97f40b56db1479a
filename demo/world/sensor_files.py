"""The sensor files of a key frame, images and sweeps, and a scene's map: their names, times and content."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from demo.world import lidar
from demo.world.camera import CAMERAS, render
from demo.world.config import KEY_PERIOD_S, SWEEP_PERIOD_S, WorldConfig
from demo.world.ray_casting import Hits
from demo.world.road import EDGES_M, Road
from demo.world.scene import Scene

Task = tuple[Scene, int]
"""A scene and the number of a key frame."""
_START_US = 1_532_402_927_000_000
_SCENE_PERIOD_US = 60_000_000
_MAP_M, _MAP_CELL_M = 512, 0.1
"""A map's lower left corner is the origin of its frame; the resolution is nuScenes'."""


@dataclass(frozen=True, kw_only=True)
class SensorFile:
    """An image or sweep, taken `age` LiDAR rotations before the key frame `frame` that it belongs to."""

    scene: Scene
    channel: str
    frame: int
    age: int = 0

    @property
    def is_key(self) -> bool:
        """Whether it was taken at the key frame."""
        return self.age == 0

    @property
    def is_lidar(self) -> bool:
        """Whether it is a sweep; otherwise it is an image."""
        return self.channel == lidar.CHANNEL

    @property
    def time_s(self) -> float:
        """Seconds after the scene's first key frame."""
        return self.frame * KEY_PERIOD_S - self.age * SWEEP_PERIOD_S

    @property
    def timestamp_us(self) -> int:
        """As in the tables."""
        return _START_US + self.scene.index * _SCENE_PERIOD_US + round(1e6 * self.time_s)

    @property
    def path(self) -> str:
        """Path within the data root, named as in nuScenes."""
        folder, ending = "samples" if self.is_key else "sweeps", "pcd.bin" if self.is_lidar else "jpg"
        return f"{folder}/{self.channel}/demo-{self.scene.name}__{self.channel}__{self.timestamp_us}.{ending}"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The actors at a key frame, and how much of each the sensors observe.

    poses: x, y and yaw in the map frame.
    in_range: whether it is annotated.
    visible, unoccluded: pixels of all cameras that show it, and that would if it were alone in the scene.
    points: of the key frame's sweep within its annotated box.
    """

    poses: Float[np.ndarray, "A 3"]
    in_range: Bool[np.ndarray, "A"]
    visible: Int[np.ndarray, "A"]
    unoccluded: Int[np.ndarray, "A"]
    points: Int[np.ndarray, "A"]

    def visibility(self, actor: int) -> str:
        """The token of nuScenes' bin for the visible share of the actor's pixels."""
        share = self.visible[actor] / max(self.unoccluded[actor], 1)
        return str(1 + int(np.searchsorted((0.4, 0.6, 0.8), share, side="right")))


def sensor_files(scene: Scene, frame: int, past_sweeps: int) -> list[SensorFile]:
    """The files of a key frame: six images, then the sweeps from the oldest to the key frame's own."""
    ages = [(camera.name, 0) for camera in CAMERAS] + [(lidar.CHANNEL, age) for age in range(past_sweeps, -1, -1)]
    return [SensorFile(scene=scene, channel=channel, frame=frame, age=age) for channel, age in ages]


def start_worker() -> None:
    """Initialise a process that writes frames; the processes share the cores already."""
    cv2.setNumThreads(1)


def write_frame(folder: Path, world: WorldConfig, task: Task) -> Observation:
    """Write the images and sweeps of a scene's key frame below `folder`."""
    scene, frame = task
    files = sensor_files(scene, frame, world.past_sweeps)
    hits = [_write_image(folder, world, file) for file in files if not file.is_lidar]
    points = [_write_sweep(folder, world, file) for file in files if file.is_lidar][-1]
    in_ego = scene.poses_in_ego(frame * KEY_PERIOD_S)
    boxes = np.asarray([actor.box_m for actor in scene.actors])
    return Observation(
        poses=scene.poses(frame * KEY_PERIOD_S),
        in_range=(np.abs(in_ego[:, :2] - lidar.POSITION_M[:2]) <= world.range_m).all(axis=1),
        visible=np.sum([hit.visible for hit in hits], axis=0),
        unoccluded=np.sum([hit.unoccluded for hit in hits], axis=0),
        points=lidar.count_points_in_boxes(points, boxes, in_ego),
    )


def write_map(path: Path, road: Road) -> None:
    """Write a map, white where one can drive; its first row is the north."""
    side = round(_MAP_M / _MAP_CELL_M)
    along = np.arange(-150.0, 250.0)
    right, left = (np.stack(road.to_map(along, np.full_like(along, edge))[:2], axis=-1) for edge in EDGES_M)
    outline = np.concatenate([right, left[::-1]]) / _MAP_CELL_M
    outline[:, 1] = side - outline[:, 1]
    picture = np.zeros((side, side), dtype=np.uint8)
    cv2.fillPoly(picture, [outline.round().astype(np.int32)], (255,))
    path.write_bytes(_encode(".png", picture))


def _write_image(folder: Path, world: WorldConfig, file: SensorFile) -> Hits:
    camera = next(camera for camera in CAMERAS if camera.name == file.channel)
    rendering = render(file.scene, file.time_s, camera, world.image_size)
    image, quality = _add_noise(rendering.image, world, file), (cv2.IMWRITE_JPEG_QUALITY, world.jpeg_quality)
    (folder / file.path).write_bytes(_encode(".jpg", image[..., ::-1], quality))
    return rendering.hits


def _add_noise(image: UInt8[np.ndarray, "H W 3"], world: WorldConfig, file: SensorFile) -> UInt8[np.ndarray, "H W 3"]:
    if not world.image_noise:
        return image
    camera = next(number for number, camera in enumerate(CAMERAS) if camera.name == file.channel)
    # Four numbers seed a sweep.
    rng = np.random.default_rng([world.seed, file.scene.index, file.frame, camera, 1])
    noise = rng.normal(0, world.image_noise, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def _write_sweep(folder: Path, world: WorldConfig, file: SensorFile) -> Float[np.ndarray, "N 5"]:
    rng = np.random.default_rng([world.seed, file.scene.index, file.frame, file.age])
    points = lidar.simulate_sweep(file.scene, file.time_s, world, rng)
    (folder / file.path).write_bytes(points.tobytes())
    return points


def _encode(ending: str, image: UInt8[np.ndarray, "..."], options: tuple[int, ...] = ()) -> bytes:
    return cv2.imencode(ending, image, options)[1].tobytes()
