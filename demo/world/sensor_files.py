"""A key frame's images and sweeps, and a scene's map, as files."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from demo.world.camera import CAMERAS, take_picture
from demo.world.config import KEY_PERIOD_S, WorldConfig
from demo.world.lidar import PLACE_M, count_points, take_sweep
from demo.world.ray_casting import Hits
from demo.world.road import EDGES_M, Road
from demo.world.scene import Scene
from demo.world.shots import Shot, shots_of

Task = tuple[Scene, int]
"""A scene and the number of a key frame."""
_MAP_M, _MAP_CELL_M = 512, 0.1
"""A map's lower left corner is the origin of its frame; the resolution is nuScenes'."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Each actor at a key frame, and what the sensors saw of it.

    poses: x, y and yaw in the map frame.
    in_range: whether it is annotated.
    seen, alone: pixels of all cameras that show it, and that would if nothing stood before it.
    points: of the key frame's sweep within its annotated box.
    """

    poses: Float[np.ndarray, "A 3"]
    in_range: Bool[np.ndarray, "A"]
    seen: Int[np.ndarray, "A"]
    alone: Int[np.ndarray, "A"]
    points: Int[np.ndarray, "A"]

    def visibility(self, actor: int) -> str:
        """The token of nuScenes' bin for the visible share of the actor's pixels."""
        share = self.seen[actor] / max(self.alone[actor], 1)
        return str(1 + int(np.searchsorted((0.4, 0.6, 0.8), share, side="right")))


def start_worker() -> None:
    """To be called first in a process that writes frames: the processes share the cores already."""
    cv2.setNumThreads(1)


def write_frame(folder: Path, world: WorldConfig, task: Task) -> Observation:
    """Write the images and sweeps of a scene's key frame below `folder`."""
    scene, frame = task
    shots = shots_of(scene, frame, world.past_sweeps)
    hits = [_write_image(folder, world, scene, shot) for shot in shots if not shot.is_lidar]
    points = [_write_sweep(folder, world, scene, shot) for shot in shots if shot.is_lidar][-1]
    in_ego = scene.poses_in_ego(frame * KEY_PERIOD_S)
    boxes = np.asarray([actor.box_m for actor in scene.actors])
    return Observation(
        poses=scene.poses(frame * KEY_PERIOD_S),
        in_range=(np.abs(in_ego[:, :2] - PLACE_M[:2]) <= world.range_m).all(axis=1),
        seen=np.sum([hit.seen for hit in hits], axis=0),
        alone=np.sum([hit.alone for hit in hits], axis=0),
        points=count_points(points, boxes, in_ego),
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
    path.write_bytes(_encoded(".png", picture))


def _write_image(folder: Path, world: WorldConfig, scene: Scene, shot: Shot) -> Hits:
    camera = next(camera for camera in CAMERAS if camera.name == shot.channel)
    picture = take_picture(scene, shot.time_s, camera, world.image_size)
    quality = (cv2.IMWRITE_JPEG_QUALITY, world.jpeg_quality)
    (folder / shot.file).write_bytes(_encoded(".jpg", picture.image[..., ::-1], quality))
    return picture.hits


def _write_sweep(folder: Path, world: WorldConfig, scene: Scene, shot: Shot) -> Float[np.ndarray, "N 5"]:
    rng = np.random.default_rng([world.seed, scene.index, shot.frame, shot.age])
    points = take_sweep(scene, shot.time_s, world, rng)
    (folder / shot.file).write_bytes(points.tobytes())
    return points


def _encoded(ending: str, image: UInt8[np.ndarray, "..."], options: tuple[int, ...] = ()) -> bytes:
    return cv2.imencode(ending, image, options)[1].tobytes()
