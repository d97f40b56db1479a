"""The files of a world: which sensor, when, and under which name."""

from dataclasses import dataclass

from demo.world import lidar
from demo.world.camera import CAMERAS
from demo.world.config import KEY_PERIOD_S, SWEEP_PERIOD_S
from demo.world.scene import Scene

_START_US = 1_532_402_927_000_000
_SCENE_PERIOD_US = 60_000_000


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One file of a sensor; taken `age` rotations of the LiDAR before the key frame `frame`, to which it belongs."""

    scene: str
    scene_index: int
    channel: str
    frame: int
    age: int = 0

    @property
    def is_key(self) -> bool:
        """Whether it was taken at the key frame."""
        return self.age == 0

    @property
    def is_lidar(self) -> bool:
        """Otherwise it is an image."""
        return self.channel == lidar.CHANNEL

    @property
    def time_s(self) -> float:
        """After the scene's first key frame."""
        return self.frame * KEY_PERIOD_S - self.age * SWEEP_PERIOD_S

    @property
    def timestamp_us(self) -> int:
        """As in the tables."""
        return _START_US + self.scene_index * _SCENE_PERIOD_US + round(1e6 * self.time_s)

    @property
    def file(self) -> str:
        """Its path within the data root, named as nuScenes does."""
        folder, ending = "samples" if self.is_key else "sweeps", "pcd.bin" if self.is_lidar else "jpg"
        return f"{folder}/{self.channel}/demo-{self.scene}__{self.channel}__{self.timestamp_us}.{ending}"


def shots_of(scene: Scene, frame: int, past_sweeps: int) -> list[Shot]:
    """The shots that belong to a key frame: six images, then the LiDAR's sweeps from the oldest to the key frame's."""

    def shot(channel: str, age: int = 0) -> Shot:
        return Shot(scene=scene.name, scene_index=scene.index, channel=channel, frame=frame, age=age)

    images = [shot(camera.name) for camera in CAMERAS]
    return images + [shot(lidar.CHANNEL, age) for age in range(past_sweeps, -1, -1)]
