"""Configuration of a made-up world."""

from typing import Literal

from pydantic import Field, model_validator

from cache.config import Strict
from cache.errors import ConfigError
from cache.nuscenes.official import split_scenes
from cache.spec import CLASSES

KEY_PERIOD_S = 0.5
"""nuScenes annotates at 2 Hz ..."""
SWEEP_PERIOD_S = 0.05
"""... and its LiDAR turns at 20 Hz."""


class WorldConfig(Strict):
    """Parameters of a made-up world in nuScenes' format.

    Equal values give equal bytes, with the same numpy and OpenCV on the same kind of processor.

    Raises:
        ConfigError: inconsistent values.
    """

    seed: int = Field(0, ge=0)
    train_scenes: int = Field(8, ge=1, le=9999)
    val_scenes: int = Field(2, ge=1, le=9999)
    names: Literal["mini", "own"] = "mini"
    """Of scenes and splits. "mini": those of nuScenes mini, at most 8 scenes in mini_train and 2 in mini_val; "own":
    any number of scenes, in the splits made_train and made_val of splits.json."""
    parts: tuple[tuple[str, int, int], ...] = ()
    """Of names "own": further splits (name, first, last): the scenes first .. last - 1 of those to train on, from 0."""
    key_frames: int = Field(8, ge=2, le=40)
    """Annotated frames of a scene, two a second."""
    past_sweeps: int = Field(3, ge=0, le=9)
    """LiDAR sweeps stored before each key frame, twenty a second."""
    image_size: tuple[int, int] = (450, 800)
    """(height, width) in pixels; the focal lengths scale with the width."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    range_m: float = Field(25.6, ge=10, le=60)
    """Objects are placed and annotated where |x| and |y| in the LiDAR frame are at most this."""
    objects: int = Field(36, ge=len(CLASSES))
    """Objects of a scene; which of them are in range varies from frame to frame."""
    each_class: int = Field(2, ge=1)
    """Minimum number of objects of each class in a scene."""
    size_spread: float = Field(0.0, ge=0, lt=0.9)
    """Each object is drawn up to this much smaller or larger than its class's mean as a whole, beside a few per cent
    in each dimension: with 0, the apparent size of a car gives its distance."""
    sun_elevation_deg: tuple[float, float] = (30.0, 60.0)
    """Range of the sun's height above the horizon."""
    exposure: tuple[float, float] = (0.88, 1.08)
    """Range of the images' brightness; 0.3 is dusk."""
    image_noise: float = Field(0.0, ge=0, le=64)
    """Standard deviation of the images' noise, in grey levels of 0 .. 255."""
    lidar_beams: int = Field(32, ge=2, le=128)
    lidar_azimuths: int = Field(1000, ge=16, le=4000)
    lidar_range_m: float = Field(70.0, gt=1)
    lidar_noise_m: float = Field(0.005, ge=0, le=0.1)
    """Standard deviation of a measured range."""

    @model_validator(mode="after")
    def _mini_has_ten_scenes(self) -> "WorldConfig":
        most = [len(split_scenes()[name]) for name in ("mini_train", "mini_val")]
        if self.names == "mini" and (self.train_scenes > most[0] or self.val_scenes > most[1]):
            raise ConfigError(
                "nuScenes mini has fewer scenes",
                where="train_scenes, val_scenes",
                got=f"{self.train_scenes} and {self.val_scenes}, with names: mini",
                expected="at most {} and {}".format(*most),
                cure="Set names to own, or lower them",
            )
        return self

    @model_validator(mode="after")
    def _parts_are_of_the_scenes_to_train_on(self) -> "WorldConfig":
        scenes = self.train_scenes if self.names == "own" else 0
        for name, first, last in self.parts:
            if not 0 <= first < last <= scenes or name in ("made_train", "made_val"):
                raise ConfigError(
                    "there are no such scenes for a split",
                    where=f"parts.{name}",
                    got=f"{first} .. {last}, with names: {self.names} and train_scenes: {self.train_scenes}",
                    expected=f"a name of its own, and 0 <= first < last <= {scenes}",
                    cure="Correct the part, raise train_scenes, or set names to own",
                )
        return self

    @model_validator(mode="after")
    def _light_is_possible(self) -> "WorldConfig":
        limits = {"sun_elevation_deg": (1.0, 90.0), "exposure": (0.05, 2.0)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ConfigError(
                    "there is no such light",
                    where=name,
                    got=(low, high),
                    expected=f"{least:g} <= lower <= upper <= {most:g}",
                    cure=f"Change {name}",
                )
        return self

    @model_validator(mode="after")
    def _possible(self) -> "WorldConfig":
        if self.objects < self.each_class * len(CLASSES):
            raise ConfigError(
                "a scene has too few objects for its classes",
                where="objects",
                got=self.objects,
                expected=f"at least {self.each_class * len(CLASSES)}, {self.each_class} of each class",
                cure="Raise objects or lower each_class",
            )
        if not all(32 <= side <= 4000 for side in self.image_size):
            raise ConfigError(
                "an image of that size cannot be drawn",
                where="image_size",
                got=self.image_size,
                expected="(height, width), each between 32 and 4000 pixels",
                cure="Change image_size",
            )
        return self
