"""Pairs of a student's and a teacher's layer: configuration, adapters, warp, and the features behind them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal, TypeVar

from jaxtyping import Bool, Float
from pydantic import NonNegativeInt
from torch import Tensor, nn

from cache.config import Strict
from cache.errors import ConfigError, MismatchError
from cache.spec import variance_layer
from cache.store.codec import Encoded
from student.distill.adapters import AdapterConfig, FeatureLayer, adapted_grid, build_adapter, changes_channels
from student.distill.alignment import alignment_matrix, requires_warp, same_extent
from student.distill.criteria import Criterion
from student.distill.feature_stats import FeatureStats, as_float, feature_stats, mask_cells
from student.distill.regions import Region, resize_map
from student.distill.warp import warp

Features = TypeVar("Features", bound=Tensor | Encoded)


class PairConfig(Strict):
    """A student's layer that learns from a teacher's layer."""

    student: str
    teacher: str
    student_adapter: AdapterConfig = AdapterConfig()
    teacher_adapter: AdapterConfig = AdapterConfig()
    cache: NonNegativeInt = 0
    """Index of the teacher, where there are several caches."""
    weight_by: Literal["none", "variance"] = "none"
    """variance: errors of a cell count 1 / (1 + variance), the committee's in that cell (`cli derive --mean`)."""
    name: str = ""
    """In the names of the logged terms; by default it follows from the layers."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The teacher's layers that are read."""
        return (self.teacher, variance_layer(self.teacher)) if self.weight_by == "variance" else (self.teacher,)

    @property
    def label(self) -> str:
        """`head`, or `backbone0-head` where the layers differ, with the cache's index unless it is the first."""
        layers = self.student if self.student == self.teacher else f"{self.student}-{self.teacher}"
        return self.name or (layers if self.cache == 0 else f"{layers}@{self.cache}")


class PairFeatures:
    """The features of a pair in one batch; 0 in invalid cells.

    adapted: the student's behind its adapter. teacher: behind its adapter, stored or float.
    valid_mask: the valid cells; None for all.
    weight: of the cells' errors; None for 1.
    """

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor | Encoded,
        adapt: nn.Module,
        valid_mask: Region | None,
        weight: Float[Tensor, "B H W"] | None = None,
    ) -> None:
        self._student, self.teacher, self.adapt, self.valid_mask = student, teacher, adapt, valid_mask
        self.weight = weight
        self.adapted = mask_cells(adapt(student), valid_mask)
        self._stats: dict[tuple[Criterion, float], FeatureStats] = {}

    @cached_property
    def raw_valid_mask(self) -> Region | None:
        """The student's cells before its adapter of which every part is valid behind it."""
        height, width = self._student.shape[2:]
        return None if self.valid_mask is None else all_valid(self.valid_mask, (height, width))

    @cached_property
    def raw(self) -> Float[Tensor, "B _ _ _"]:
        """The student's features before its adapter."""
        return mask_cells(self._student, self.raw_valid_mask)

    def stats(self, criterion: Criterion, channel_temperature: float = 1.0) -> FeatureStats:
        """The pair's statistics under a criterion and a channel attention, computed once for all terms."""
        key = (criterion, channel_temperature)
        if key not in self._stats:
            stats = feature_stats(self.adapted, self.teacher, criterion, channel_temperature, self.valid_mask)
            if self.weight is not None:
                errors = {name: getattr(stats, name) * self.weight for name in ("error", "weighted_error")}
                stats = replace(stats, **errors)
            self._stats[key] = stats
        return self._stats[key]


class LayerPair(nn.Module):
    """A student's layer, a teacher's layer, and the adapters that make them comparable.

    A teacher of another extent is warped so that its adapter's output lies on the student's grid.

    Raises:
        ConfigError: channels differ and no adapter changes them.
        MismatchError: the grids behind the adapters do not overlap, or differ by an adapter's factor.
    """

    def __init__(self, config: PairConfig, student: FeatureLayer, teacher: FeatureLayer) -> None:
        super().__init__()
        self.config = config
        where = f"distill.pairs, {config.label}"
        self.grid = adapted_grid(config.student_adapter, student.grid, where)
        self.teacher_grid = teacher.grid
        self.warped_grid = adapted_grid(config.teacher_adapter, self.grid, where, inverse=True)
        same = same_extent(self.grid, teacher.grid)
        theirs = adapted_grid(config.teacher_adapter, teacher.grid, where) if same else teacher.grid
        self.always_warped = requires_warp(self.grid, theirs, where)
        self.student_channels = student.channels
        self.shapes = (student.channels, *student.grid.shape), (teacher.channels, *teacher.grid.shape)
        self.channels = student.channels if changes_channels(config.teacher_adapter) else teacher.channels
        if student.channels != self.channels and not changes_channels(config.student_adapter):
            raise ConfigError(
                "channels differ and no adapter changes them",
                where=where,
                got=f"student layer {config.student!r} with {student.channels} channels",
                expected=f"{teacher.channels}, as in the teacher's layer {config.teacher!r}",
                cure="Set student_adapter to 1x1conv, or to a kind that ends in _1x1conv where it also resizes",
            )
        if config.weight_by == "variance" and config.teacher_adapter != AdapterConfig():
            raise ConfigError(
                "a variance is of the teacher's cells, before an adapter",
                where=where,
                got=f"weight_by variance, teacher_adapter {config.teacher_adapter.kind}",
                expected="teacher_adapter identity",
                cure="Adapt the student instead, or leave weight_by out",
            )
        self.student_adapter = build_adapter(config.student_adapter, student.channels, self.channels)
        self.teacher_adapter = build_adapter(config.teacher_adapter, teacher.channels, self.channels)

    def forward(
        self,
        student: Mapping[str, Float[Tensor, "B _ _ _"]],
        teacher: Mapping[str, Tensor | Encoded],
        to_teacher: Float[Tensor, "B 4 4"] | None = None,
    ) -> PairFeatures:
        """Both maps behind their adapters; a teacher that is neither warped nor adapted stays as stored.

        Args:
            to_teacher: metres of the student's grid -> metres of the teacher's; None where they are the same.

        Raises:
            MismatchError: a layer is missing, or has another shape than at construction.
        """
        ours = self._layer("student", student, self.config.student, self.shapes[0])
        theirs: Tensor | Encoded = self._layer("teacher", teacher, self.config.teacher, self.shapes[1])
        variance = self._variance(teacher)
        valid_mask: Region | None = None
        if to_teacher is not None or self.always_warped:
            matrix = alignment_matrix(to_teacher, len(ours), self.warped_grid, self.teacher_grid)
            warped = warp(theirs, self.teacher_grid, self.warped_grid, matrix)
            valid_mask = all_valid(warped.valid_mask, self.grid.shape)
            theirs = _mask_features(warped.features, warped.valid_mask)
            if variance is not None:
                variance = warp(variance, self.teacher_grid, self.warped_grid, matrix).features
        if not isinstance(self.teacher_adapter, nn.Identity):
            theirs = mask_cells(self.teacher_adapter(as_float(theirs)), valid_mask)
        weight = None if variance is None else 1 / (1 + variance[:, 0])
        return PairFeatures(ours, theirs, self.student_adapter, valid_mask, weight)

    def _variance(self, teacher: Mapping[str, Tensor | Encoded]) -> Float[Tensor, "B 1 h w"] | None:
        if self.config.weight_by == "none":
            return None
        name = variance_layer(self.config.teacher)
        return as_float(self._layer("teacher", teacher, name, (1, *self.teacher_grid.shape)))

    def _layer(self, who: str, layers: Mapping[str, Features], name: str, shape: tuple[int, int, int]) -> Features:
        found = layers.get(name)
        got = None if found is None else (found.values if isinstance(found, Encoded) else found).shape[1:]
        if found is None or got != shape:
            raise MismatchError(
                f"the {who}'s layer {name!r} is not the one that the objective was built for",
                where=f"distill.pairs, {self.config.label}",
                got=f"only {', '.join(layers)}" if got is None else tuple(got),
                expected=shape,
                cure="Pass the layers, channels and grids that were given at construction",
            )
        return found


def _mask_features(features: Tensor | Encoded, valid_mask: Region) -> Tensor | Encoded:
    if isinstance(features, Encoded):
        return replace(features, values=mask_cells(features.values, valid_mask))
    return mask_cells(features, valid_mask)


def all_valid(valid_mask: Bool[Tensor, "B _ _"], shape: tuple[int, int]) -> Bool[Tensor, "B _ _"]:
    """The valid mask of H x W cells that merge or split those of `valid_mask`: every part of them is valid."""
    return ~(resize_map((~valid_mask).float(), shape) > 0)
