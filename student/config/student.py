"""StudentConfig: data, images, augmentation, detector, optimisation and distillation of a student; one YAML file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cache.config import Range, Size, Strict
from cache.errors import ConfigError
from cache.geometry.grid import BevGrid
from cache.geometry.views import BevAugmentConfig
from cache.spec import CLASSES, Decoding
from student.config.training import TrainingConfig
from student.distill.config import DistillConfig

TASKS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)

SCALE_NMS = Decoding(
    nms_type=("rotate", "rotate", "rotate", "circle", "rotate", "rotate"),
    nms_thr=(0.2, 0.2, 0.2, 0.2, 0.2, 0.5),
    nms_scale=(1.0, 0.7, 0.7, 0.4, 0.55, 1.1, 1.0, 1.0, 4.5, 9.0),
)
"""Scale-NMS of BEVDet, for the six tasks above."""


TorchvisionWeights = Annotated[str, Field(pattern=r"^torchvision(:\w+)?$")]

MOST_RESIZE = 2.0
"""Of what is added to the ratio of widths: a wider range is a mistake."""

MOST_PIXELS = 8192
MOST_BINS = 1000


class DataConfig(Strict):
    """nuScenes version, splits, frames and sensors, and loader workers."""

    version: str = "v1.0-trainval"
    train_split: str = "train"
    val_split: str = "val"
    unlabelled_split: str | None = None
    """Frames of another split that are trained on beside train_split's, without their annotations: distill.foreground
    finds the objects for the terms, and distill.pseudo_labels lets the detector learn the teacher's boxes."""
    cameras: tuple[str, ...] = ()
    """Channels of the images, in their order. By default those of nuScenes' six that sensor.json lists, or all of its
    cameras where it lists none of the six."""
    lidar: str = ""
    """The LiDAR in whose frame images, boxes and depth are: the teacher's. By default LIDAR_TOP, or the only one that
    sensor.json lists."""
    exclude: tuple[str, ...] = ()
    """Tokens of key frames to leave out, of both splits."""
    skip_missing: bool = False
    """Leave out frames of which an image, or a LiDAR file that is needed, is not on the disk; otherwise that is an
    error. Frames of a 4D detector's history count too."""
    workers: int = Field(4, ge=0, le=256)
    local_cache: Path | None = None
    """Folder for the shards of stores at URLs; processes may share it."""
    local_cache_gb: float | None = Field(None, gt=0)
    """Limit of that folder."""


class ImageConfig(Strict):
    """Image size at the network's input, and the augmentation of the public BEVDet code."""

    size: tuple[Size, Size] = (256, 704)
    """(height, width) in pixels."""
    resize: Range = (-0.06, 0.11)
    """Drawn and added to the ratio of widths, at training time."""
    rotation_deg: Range = (-5.4, 5.4)
    flip: bool = True
    crop_height: Range = (0.0, 0.0)
    """Fraction of the resized image below the crop, drawn at training time."""
    resize_test: float = Field(0.0, gt=-MOST_RESIZE, lt=MOST_RESIZE)
    """Added to the ratio of widths at evaluation."""

    @model_validator(mode="after")
    def _possible_draws(self) -> "ImageConfig":
        limits = {"resize": (-MOST_RESIZE, MOST_RESIZE), "crop_height": (0.0, 1.0)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if low < least or high > most:
                raise ConfigError(
                    "a range of the image augmentation is impossible",
                    where=f"image.{name}",
                    got=f"{low:g} .. {high:g}",
                    expected=f"within {least:g} .. {most:g}",
                    cure="Correct the range",
                )
        if max(self.size) > MOST_PIXELS:
            raise ConfigError(
                "images of that size cannot be trained on",
                where="image.size",
                got=f"{self.size[0]} x {self.size[1]}",
                expected=f"at most {MOST_PIXELS} pixels a side",
                cure="Change image.size",
            )
        return self


class StudentBevAugmentConfig(BevAugmentConfig):
    """BEV augmentation of the student's boxes and cameras; its teachers' maps are warped along."""

    replay: bool = False
    """Draw no matrix, but take one of the drawn views that the first cache holds of the sample, at random."""

    @model_validator(mode="after")
    def _one_source(self) -> "StudentBevAugmentConfig":
        if self.replay and self.model_dump(exclude_defaults=True) != {"replay": True}:
            raise ConfigError(
                "replayed views leave nothing to draw",
                where="bev_augment",
                got=self,
                expected="replay alone: the store's views.augment says how its views were drawn",
                cure="Leave out the other keys of bev_augment, or replay",
            )
        return self


class HeadConfig(Strict):
    """The centre head (CenterPoint): its tasks, targets and losses."""

    tasks: tuple[tuple[str, ...], ...] = TASKS
    shared_channels: Size = 64
    gaussian_overlap: float = Field(0.1, gt=0, lt=1)
    min_radius: int = Field(2, ge=0, le=1000)
    code_weights: tuple[float, ...] = Field((1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2), min_length=10, max_length=10)
    """Of x, y offset, z, log dx, log dy, log dz, sin yaw, cos yaw, vx, vy."""
    heatmap_weight: float = 1.0
    boxes_weight: float = 0.25
    decoding: Decoding = SCALE_NMS

    @model_validator(mode="after")
    def _each_class_once(self) -> "HeadConfig":
        classes = [name for task in self.tasks for name in task]
        wrong = {
            "a class is in two places": [name for name in dict.fromkeys(classes) if classes.count(name) > 1],
            "a class is none of nuScenes'": [name for name in classes if name not in CLASSES],
            "a task has no class": [] if self.tasks and all(self.tasks) else ["no class"],
        }
        for what, found in wrong.items():
            if found:
                raise ConfigError(
                    what,
                    where="detector.head.tasks",
                    got=", ".join(found),
                    expected=f"tasks of one or more of {', '.join(CLASSES)}, each once",
                    cure="Correct the tasks",
                )
        return self


class DetectorConfig(Strict):
    """A multi-camera BEV detector; the defaults are a BEVDepth R50 at the sizes of DistillBEV's tables."""

    name: Literal["bevdet", "bevdet4d", "bevdepth", "bevdepth4d"] = "bevdepth"
    history: int = Field(1, ge=1, le=64)
    """Key frames before the current one, in a 4D detector's input; the others have none."""
    history_step: int = Field(1, ge=1, le=64)
    """Key frames, of 0.5 s each, from one input frame to the next; 3 for the public 4D models of BEVDet 0.x."""
    image_backbone: str = "resnet50"
    """The name of a torchvision ResNet (ResNeXt, wide ResNet), ConvNeXt, EfficientNet, MobileNet, RegNet or Swin."""
    image_weights: TorchvisionWeights | Path | None = None
    """First weights of the image backbone. "torchvision": its own, trained on ImageNet, fetched once into torch.hub's
    cache; IMAGENET1K_V1 as in the public recipes, others by name ("torchvision:IMAGENET1K_V2"). A path: any file that
    `import-checkpoint` reads. null: random weights. Not used where training.init_from gives all weights."""
    image_neck_channels: Size = 256
    image_stride: Literal[8, 16] = 16
    depth_m: tuple[float, float, float] = (1.0, 60.0, 1.0)
    """Nearest, farthest and size of the depth bins, in metres."""
    z_range_m: Range = (-10.0, 10.0)
    grid: BevGrid = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8))
    lift_channels: Size = 64
    bev_channels: tuple[Size, Size, Size] = (128, 256, 512)
    bev_neck_channels: Size = 256
    depth_weight: float = 3.0
    depth_net: Literal["aspp", "dcn"] = "aspp"
    """BEVDepth's: "aspp" as in BEVDet 2.x without deformable convolution, "dcn" as in BEVDet 0.x and DistillBEV."""
    depth_channels: Size = 256
    """Channels within the depth net "dcn"; "aspp" keeps those of the image neck."""
    head: HeadConfig = HeadConfig()

    @property
    def times(self) -> int:
        """Key frames of an input, the current one included."""
        return 1 + self.history if self.name.endswith("4d") else 1

    @property
    def depth_bins(self) -> int:
        """Number of depth bins."""
        nearest, farthest, size = self.depth_m
        return round((farthest - nearest) / size)

    @property
    def bin_depths_m(self) -> tuple[float, ...]:
        """The near edge of each depth bin."""
        nearest, _, size = self.depth_m
        return tuple(nearest + size * index for index in range(self.depth_bins))

    @model_validator(mode="after")
    def _whole_bins(self) -> "DetectorConfig":
        nearest, farthest, size = self.depth_m
        bins = (farthest - nearest) / size if size > 0 else 0
        if nearest <= 0 or not 1 <= bins <= MOST_BINS or abs(bins - round(bins)) > 1e-4:
            raise ConfigError(
                "the depth range is not a whole number of bins",
                where="detector.depth_m",
                got=f"{nearest} .. {farthest} m in bins of {size} m",
                expected=f"0 < nearest, and (farthest - nearest) / size a whole number, 1 .. {MOST_BINS}",
                cure="Change the range or the size",
            )
        return self

    @model_validator(mode="after")
    def _some_height(self) -> "DetectorConfig":
        low, high = self.z_range_m
        if low == high:
            raise ConfigError(
                "no point lies between two equal heights",
                where="detector.z_range_m",
                got=f"{low:g} .. {high:g}",
                cure="Widen the range",
            )
        return self

    @model_validator(mode="after")
    def _rows_of_the_detectors(self) -> "DetectorConfig":
        if self.grid.axes != "yx":
            raise ConfigError(
                "the detectors' maps have a row for each y",
                where="detector.grid.axes",
                got=self.grid.axes,
                expected="yx; a cache of other axes is read where the student's cells lie",
                cure="Leave it out",
            )
        return self

    @model_validator(mode="after")
    def _grid_survives_three_halvings(self) -> "DetectorConfig":
        if any(side % 8 for side in self.grid.shape):
            raise ConfigError(
                "the BEV grid does not fit the BEV encoder, which halves it three times",
                where="detector.grid",
                got="{} x {} cells".format(*self.grid.shape),
                expected="multiples of 8",
                cure="Change the grid's range or its cell size",
            )
        return self


class StudentConfig(Strict):
    """Top level of a student's YAML; with `distill: null`, the default, the student trains without a teacher."""

    data: DataConfig = DataConfig()
    image: ImageConfig = ImageConfig()
    bev_augment: StudentBevAugmentConfig = StudentBevAugmentConfig()
    detector: DetectorConfig = DetectorConfig()
    training: TrainingConfig = TrainingConfig()
    distill: DistillConfig | None = None

    def teacher_layers(self, cache: int = 0) -> tuple[str, ...]:
        """The layers of a teacher that the pairs compare; none without distill."""
        pairs = self.distill.pairs if self.distill else ()
        return tuple(sorted({layer for pair in pairs if pair.cache == cache for layer in pair.layers}))

    @model_validator(mode="after")
    def _teachers_for_frames_without_labels(self) -> "StudentConfig":
        if not self.data.unlabelled_split:
            return self
        problems = {
            "distill, with foreground: teacher or boxes_or_teacher, or with pseudo_labels": self.distill is None
            or (self.distill.foreground.source == "boxes" and self.distill.pseudo_labels is None),
            "training.class_balanced: false, since it draws frames by their labels": self.training.class_balanced,
        }
        for expected, holds in problems.items():
            if holds:
                raise ConfigError(
                    "frames without labels are trained on, and a setting needs labels",
                    where="data.unlabelled_split",
                    got=self.data.unlabelled_split,
                    expected=expected,
                    cure="Change it, or leave data.unlabelled_split out",
                )
        return self

    @model_validator(mode="after")
    def _depth_to_compare(self) -> "StudentConfig":
        if self.distill is not None and self.distill.compares_depth and not self.detector.name.startswith("bevdepth"):
            raise ConfigError(
                "a term compares the student's depth with the LiDAR's, and the student learns none",
                where="distill.terms, detector.name",
                got=self.detector.name,
                expected="bevdepth or bevdepth4d",
                cure="Leave tigbev_depth out, or use one of these detectors",
            )
        return self

    @model_validator(mode="after")
    def _something_to_replay(self) -> "StudentConfig":
        if self.bev_augment.replay and self.distill is None:
            raise ConfigError(
                "there is no cache whose views could be replayed",
                where="bev_augment.replay",
                got="distill: null",
                cure="Set bev_augment.replay to false, and its ranges to those of the store's views",
            )
        return self
