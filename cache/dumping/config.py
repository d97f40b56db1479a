"""Configuration of a dump."""

from pathlib import Path

from pydantic import Field, PositiveInt

from cache.config import Strict
from cache.geometry.views import CANONICAL, ViewsConfig
from cache.nuscenes.completeness import on_disk, warn_of_missing, without
from cache.nuscenes.frames import Frames
from cache.spec import CodecSpec
from cache.store.layout import Layout


class DumpConfig(Strict):
    """What to dump. Layers after a ReLU take codec kind unsigned, others signed."""

    teacher: str
    """An mmdet3d config (a file, or a name of mmdet3d's model zoo), or `module:function`, which makes a Teacher of your
    own of (checkpoint, device)."""
    points: str | None = None
    """`module:function` (frame, points) -> points, for painted or virtual points; see docs/your-student.md."""
    version: str = "v1.0-trainval"
    splits: tuple[str, ...] = ("train", "val")
    lidar: str = ""
    """The teacher's LiDAR: by default LIDAR_TOP, or the only one that sensor.json lists."""
    cameras: tuple[str, ...] = ()
    """Cameras whose depth `depth` keeps, in the order of the student's data.cameras. By default those of nuScenes' six
    that sensor.json lists, or all of its cameras where it lists none of the six."""
    exclude: tuple[str, ...] = ()
    """Tokens of key frames to leave out."""
    skip_missing: bool = False
    """Leave out frames of which a LiDAR file is not on the disk; otherwise that is an error."""
    layers: dict[str, CodecSpec] = Field(
        default_factory=lambda: {name: CodecSpec() for name in ("head", "backbone0", "backbone1", "backbone2")}
    )
    head_maps: bool = True
    """Keep the head's other maps as float16 too: the cached teacher can be evaluated, and boxes be drawn."""
    views: ViewsConfig = CANONICAL
    depth: bool = False
    """Keep the key sweep's points in the cameras: a training that learns depth then needs no LiDAR file."""
    samples_per_shard: int = Field(32, ge=1, le=64)
    zstd_level: int = Field(1, ge=1, le=19)
    batch_size: PositiveInt = 4
    """Frames in one pass of the teacher, all in one view; never from two shards, so that a resumed dump forms the same
    batches."""
    workers: int = Field(4, ge=0, le=256)
    """Processes that load points and voxelise."""

    def frames(self, root: Path) -> Frames:
        """The frames to dump, without those that `exclude` and `skip_missing` leave out.

        Raises:
            DataError, ConfigError: see `Frames`, `without` and `on_disk`.
        """
        frames = Frames(root=root, version=self.version, splits=self.splits, cameras=self.cameras, lidar=self.lidar)
        if self.exclude:
            frames = without(frames, frozenset(self.exclude))
        if not self.skip_missing:
            return frames
        found = on_disk(frames, (frames.lidar,), past_sweeps=frames.max_sweeps)
        warn_of_missing(frames, found, "skip_missing")
        return found

    @property
    def layout(self) -> Layout:
        """How the store is cut into files."""
        return Layout(samples_per_shard=self.samples_per_shard, zstd_level=self.zstd_level)
