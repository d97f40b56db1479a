"""CacheSpec: the content and origin of a cache, which a store records and its readers can require."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from cache.config import Strict, differing
from cache.errors import ConfigError, MismatchError
from cache.geometry.camera_points import DepthSpec
from cache.geometry.grid import BevGrid
from cache.geometry.views import DrawnViews, ViewName, describe_views, require_views

MOST_SAMPLES = 10**7
MOST_VIEWS = 1000
MapName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
"""Of a layer or a map of the head: also the name of its folder in the store."""

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""The ten detection classes in mmdet3d's order; a label is an index into it."""

LIDAR = "LIDAR_TOP"
"""nuScenes' LiDAR."""


COLUMNS = ("x", "y", "z", "intensity", "lag")
"""Of the points: metres in the LiDAR frame, 0 .. 255, seconds."""


class PointPipeline(Strict):
    """Accumulation of LiDAR sweeps; part of the cache's identity. Names follow mmdet3d's LoadPointsFromMultiSweeps."""

    past_sweeps: NonNegativeInt = 9
    pad_empty_sweeps: bool = True
    """Where a frame has no past sweep, repeat the key frame's points in their place."""
    remove_close_m: float = 1.0
    """Drop the points of past (and padded) sweeps nearer than this to the sensor, along x and along y."""
    columns: tuple[int, ...] | None = (0, 1, 2, 3, 4)
    """The columns of COLUMNS that the teacher takes; None where a hook makes others."""
    range_m: tuple[float, float, float, float, float, float] | None = None
    """x, y, z from, x, y, z to: points outside are dropped (mmdet3d's PointsRangeFilter), in each view; None where the
    teacher's own range is as narrow."""
    hook: str | None = None
    """`module:function` that made the points of a frame from those of the sweeps: painted, virtual, normalised."""
    hook_sha256: str | None = None
    """Of the source of the hook's module."""

    def __str__(self) -> str:
        hook = "" if self.hook is None else f", made by {self.hook}"
        return f"{self.past_sweeps} past sweeps{hook}"


class CodecSpec(Strict):
    """Quantisation of a layer's float32 values.

    unsigned: 0 .. 2^bits - 1 times a scale per channel; for layers after a ReLU, where it keeps 0 exact.
    signed: the same about 0, for layers without a ReLU.
    float16: without quantisation.
    """

    kind: Literal["unsigned", "signed", "float16"] = "unsigned"
    bits: int = Field(8, ge=4, le=8)
    companding: float = Field(1.0, gt=0, le=1)
    """Exponent on |value| / largest of its channel before rounding: 1 is uniform, 0.5 favours small values."""
    target_sqnr_db: float | None = Field(None, gt=0, le=200)
    """All channels of a sample share the step that leaves this ratio, as far as their largest values fit the codes;
    with None each channel has its own step, the smallest that its largest value allows."""
    min_sqnr_db: float = 30.0
    """The budget: a layer whose signal-to-quantisation-noise ratio falls below it stops the dump."""

    @model_validator(mode="after")
    def _possible_target(self) -> "CodecSpec":
        target = self.target_sqnr_db
        if target is None:
            return self
        if self.kind == "float16" or self.companding != 1:
            raise ConfigError(
                "target_sqnr_db chooses the step of uniform codes",
                got=f"codec kind {self.kind}, companding {self.companding:g}",
                expected="unsigned or signed, without companding",
                cure="Leave out companding, or target_sqnr_db",
            )
        if target < self.min_sqnr_db:
            raise ConfigError(
                "a layer's codec aims below its own budget",
                got=f"target_sqnr_db {target:g}",
                expected=f"at least min_sqnr_db {self.min_sqnr_db:g}",
                cure="Lower min_sqnr_db as well",
            )
        return self

    def __str__(self) -> str:
        if self.kind == "float16":
            return self.kind
        companding = "" if self.companding == 1 else f", companding {self.companding:g}"
        target = "" if self.target_sqnr_db is None else f", step for {self.target_sqnr_db:g} dB"
        return f"{self.kind}, {self.bits} bits{companding}{target}"

    @property
    def levels(self) -> int:
        """The largest code: 255 for unsigned 8 bits, 127 for signed 8 bits; float16 has no codes."""
        return 2 ** (self.bits - (self.kind == "signed")) - 1

    @property
    def dtype(self) -> Literal["uint8", "int8", "float16"]:
        """Type of the stored values; codes of fewer than 8 bits still take a byte, which the compressor shrinks."""
        return "uint8" if self.kind == "unsigned" else "int8" if self.kind == "signed" else "float16"


LAYER_COLUMNS = ("layer", "shape", "grid", "codec")
"""Of LayerSpec.facts."""


class LayerSpec(Strict):
    """One map of features: (channels, H, W) over a grid."""

    name: MapName
    channels: int = Field(gt=0, le=2**20)
    grid: BevGrid
    codec: CodecSpec

    @property
    def facts(self) -> tuple[str, ...]:
        """Name, shape, grid and codec as text."""
        return self.name, " x ".join(map(str, (self.channels, *self.grid.shape))), str(self.grid), str(self.codec)


NmsType = Literal["circle", "rotate"]


class Decoding(Strict):
    """Decoding of a centre head's maps into boxes; the names are those of mmdet3d's CenterPoint `test_cfg`."""

    score_threshold: float = Field(0.1, ge=0, le=1)
    max_per_frame: int = Field(500, ge=1)
    pre_max_size: int = Field(1000, ge=1)
    post_max_size: int = Field(83, ge=1)
    nms_type: NmsType | tuple[NmsType, ...] = "circle"
    """For all tasks, or one for each."""
    nms_thr: float | tuple[float, ...] = 0.2
    """Rotated NMS: intersection over union, for all tasks or one for each."""
    nms_scale: tuple[float, ...] = ()
    """Rotated NMS: factor of each class's dx, dy while boxes are compared (BEVDet's Scale-NMS); all 1 where empty."""
    min_radius: tuple[float, ...] = (4.0, 12.0, 10.0, 1.0, 0.85, 0.175)
    """Circle NMS: metres for each task (mmdet3d compares it with the squared distance)."""
    post_center_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    log_dimensions: bool = True
    """The head's `dim` map holds logarithms of metres (`norm_bbox`)."""


def variance_layer(layer: str) -> str:
    """The name of the layer that holds the variance of a committee's members, of one of their layers."""
    return f"{layer}_variance"


class TeacherIdentity(Strict):
    """The detector that made the features, as far as it decides their values."""

    name: str
    weights: Literal["checkpoint", "random"] = "checkpoint"
    weights_sha256: str
    config_sha256: str
    """Of the resolved mmdet3d configuration of the model; of a teacher of your own, of what decides its network."""
    tasks: tuple[tuple[str, ...], ...]
    """The classes of each of the head's tasks, in the head's order; the heatmap's channels are their concatenation."""
    box_convention: Literal["mmdet3d-1.x"] = "mmdet3d-1.x"
    decoding: Decoding = Decoding()

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes in the order of the heatmap's channels."""
        return tuple(name for task in self.tasks for name in task)


class DataIdentity(Strict):
    """The frames that were dumped."""

    version: str
    splits: tuple[str, ...]
    samples: int = Field(ge=0, le=MOST_SAMPLES)
    tokens_sha256: str
    lidar: str = LIDAR
    """The channel whose points the teacher saw, and in whose frame its maps are."""

    @classmethod
    def of(cls, version: str, splits: tuple[str, ...], tokens: tuple[str, ...], lidar: str = LIDAR) -> "DataIdentity":
        """The identity of these splits' tokens, in dump order."""
        digest = _sha256("\n".join(tokens))
        return cls(version=version, splits=splits, samples=len(tokens), tokens_sha256=digest, lidar=lidar)


class LineageSource(Strict):
    """A store that another was derived from."""

    fingerprint: str
    """Of its spec."""
    codecs: dict[str, CodecSpec]
    """Of its layers."""
    sqnr_db: dict[str, float | None]
    """What its codecs left of each layer; null where nothing was lost."""
    lineage: "Lineage | None" = None
    """Its own, where it was derived as well."""


class Lineage(Strict):
    """How a store was made from others, without the teacher."""

    operation: Literal["encode", "mean", "aligned mean"]
    """encode: the decoded features of one store, encoded again by the codecs of this one. mean: of several teachers'
    maps; aligned mean: with the features of each rotated to those of the first."""
    sources: tuple[LineageSource, ...] = Field(min_length=1)

    def __str__(self) -> str:
        names = " and ".join(source.fingerprint[:12] for source in self.sources)
        return f"{self.operation} of {names}"


class CacheSpec(Strict):
    """Everything that decides a store's content."""

    format_version: Literal[1] = 1
    teacher: TeacherIdentity
    data: DataIdentity
    points: PointPipeline
    layers: tuple[LayerSpec, ...]
    heatmap: Literal["probability", "none"] = "probability"
    """`none` of a detector whose head has no heatmaps (anchors, transformers): layers and canvas alone are stored."""
    heatmap_grid: BevGrid
    """Of the heatmap and the head's other maps; of the layer `head` where there is no heatmap."""
    canvas_grid: BevGrid
    head_maps: dict[MapName, Annotated[int, Field(gt=0, le=2**20)]] = Field(default_factory=dict)
    """Channels for each task of the head's other maps ("reg": 2, ...); empty where they are not stored."""
    views: tuple[ViewName, ...] = Field(("canonical",), max_length=MOST_VIEWS)
    drawn: DrawnViews | None = None
    """How the drawn views were drawn; None without drawn views."""
    depth: DepthSpec | None = None
    """How the key sweep's points in the cameras are stored; None where they are not."""
    lineage: Lineage | None = None
    """The stores that this one was derived from; None of a teacher's own."""

    @model_validator(mode="after")
    def _views_in_order(self) -> "CacheSpec":
        require_views(self.views, self.drawn)
        return self

    @model_validator(mode="after")
    def _different_names(self) -> "CacheSpec":
        names = [layer.name for layer in self.layers]
        taken = {*names, *(f"{name}_scale" for name in names)}
        if len(taken) < 2 * len(names):
            raise ConfigError(
                "two layers have the same name, or one that of another's scales",
                where="layers",
                got=", ".join(names),
                cure="Name each layer once",
            )
        return self

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What is cached of which teacher: names and values as text."""
        teacher, data = self.teacher, self.data
        return (
            ("fingerprint", self.fingerprint),
            ("samples", f"{data.samples} of {data.version}, {', '.join(data.splits)}"),
            ("views", describe_views(self.views, self.drawn)),
            ("teacher", f"{teacher.name}, {teacher.weights} weights {teacher.weights_sha256[:12]}"),
            ("classes", ", ".join(teacher.classes)),
            *([("heatmap", "none")] if self.heatmap == "none" else []),
            ("points", str(self.points)),
            ("depth", "not kept" if self.depth is None else str(self.depth)),
            *([] if self.lineage is None else [("derived", str(self.lineage))]),
        )

    def __repr__(self) -> str:
        layers = ", ".join(" ".join(layer.facts[:2]) for layer in self.layers)
        return f"CacheSpec({self.teacher.name} on {dict(self.facts)['samples']}: {layers}; {self.fingerprint[:12]})"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of this record.

        Fields at their defaults are left out: one added later leaves the fingerprints of older stores as they are.
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        return _sha256(json.dumps(values, sort_keys=True, separators=(",", ":")))

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name.

        Raises:
            MismatchError: the cache holds no such layer.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        known = ", ".join(layer.name for layer in self.layers)
        raise MismatchError(
            "the cache lacks a layer",
            got=known,
            expected=name,
            cure="Dump it with `layers`, or name another in distill.pairs",
        )

    def differences(self, expected: "CacheSpec | dict[str, Any]") -> list[str]:
        """One readable line for each leaf of `expected`, a spec or a part of one, that differs from this record."""
        whole = isinstance(expected, CacheSpec)
        wanted = expected.model_dump(mode="json") if isinstance(expected, CacheSpec) else expected
        leaves = differing(self.model_dump(mode="json"), wanted, whole=whole)
        return [f"{path}: stored {stored!r}, expected {value!r}" for path, stored, value in leaves]

    def require(self, expected: "CacheSpec | dict[str, Any]", where: object) -> None:
        """Check that this record agrees with `expected`, a spec or a part of one.

        Raises:
            MismatchError: with one line for each difference.
        """
        lines = self.differences(expected)
        if lines:
            raise MismatchError(
                "the store is not the one expected:\n  " + "\n  ".join(lines) + "\n",
                where=str(where),
                cure="Point to the right store, dump a new one, or change the configuration",
            )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
