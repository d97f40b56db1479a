"""A student's layer facing a teacher's: adapted, warped if need be, and their moments."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from cache.errors import ConfigError, MismatchError
from cache.store.codec import Encoded
from student.distill.adapters import FeatureLayer, adapted_grid, build_adapter, changes_channels, grid_before
from student.distill.alignment import needs_warp, placement, same_ground
from student.distill.config import PairConfig
from student.distill.feature_stats import Moments, decoded, moments, only
from student.distill.regions import fit
from student.distill.term_configs import Criterion
from student.distill.warp import warp

Features = TypeVar("Features", bound=Tensor | Encoded)
Region = Bool[Tensor, "B H W"]


class PairView:
    """A pair in one batch; its moments are formed once, whatever number of terms asks for them.

    Both sides are 0 in the cells that do not count.

    adapted: the student behind its adapter. teacher: behind its adapter, as stored or float.
    inside: the cells that count; None for all.
    """

    def __init__(self, student: Tensor, teacher: Tensor | Encoded, adapt: nn.Module, inside: Region | None) -> None:
        self._student, self.teacher, self.adapt, self.inside = student, teacher, adapt, inside
        self.adapted = only(adapt(student), inside)
        self._moments: dict[tuple[Criterion, float], Moments] = {}

    @cached_property
    def raw_inside(self) -> Region | None:
        """The student's cells before its adapter that count: those all of whose part counts behind it."""
        height, width = self._student.shape[2:]
        return None if self.inside is None else all_inside(self.inside, (height, width))

    @cached_property
    def raw(self) -> Float[Tensor, "B _ _ _"]:
        """The student before its adapter."""
        return only(self._student, self.raw_inside)

    def moments(self, criterion: Criterion, channel_temperature: float = 1.0) -> Moments:
        """The pair's moments under a criterion and a channel attention."""
        key = (criterion, channel_temperature)
        if key not in self._moments:
            self._moments[key] = moments(self.adapted, self.teacher, criterion, channel_temperature, self.inside)
        return self._moments[key]


class LayerPair(nn.Module):
    """A student's layer, a teacher's layer, and the adapters that make them comparable.

    A teacher over other ground is warped so that it lies on the student's grid behind the adapters.

    Raises:
        ConfigError: channels differ and no adapter changes them.
        MismatchError: the grids behind the adapters have no ground in common, or differ by an adapter's factor.
    """

    def __init__(self, config: PairConfig, student: FeatureLayer, teacher: FeatureLayer) -> None:
        super().__init__()
        self.config = config
        where = f"distill.pairs, {config.label}"
        self.grid = adapted_grid(config.student_adapter, student.grid, where)
        self.teacher_grid, self.warped_grid = teacher.grid, grid_before(config.teacher_adapter, self.grid, where)
        alike = same_ground(self.grid, teacher.grid)
        theirs = adapted_grid(config.teacher_adapter, teacher.grid, where) if alike else teacher.grid
        self.always_warped = needs_warp(self.grid, theirs, where)
        self.student_channels = student.channels
        self.shapes = (student.channels, *student.grid.shape), (teacher.channels, *teacher.grid.shape)
        converts = changes_channels(config.teacher_adapter)
        self.channels = student.channels if converts else teacher.channels
        if student.channels != self.channels and not changes_channels(config.student_adapter):
            raise ConfigError(
                "channels differ and no adapter changes them",
                where=where,
                got=f"student layer {config.student!r} with {student.channels} channels",
                expected=f"{teacher.channels}, as in the teacher's layer {config.teacher!r}",
                cure="Set student_adapter to 1x1conv, or to a kind that ends in _1x1conv where it also resizes",
            )
        self.student_adapter = build_adapter(config.student_adapter, student.channels, self.channels)
        self.teacher_adapter = build_adapter(config.teacher_adapter, teacher.channels, self.channels)

    def forward(
        self,
        student: Mapping[str, Float[Tensor, "B _ _ _"]],
        teacher: Mapping[str, Tensor | Encoded],
        to_teacher: Float[Tensor, "B 4 4"] | None = None,
    ) -> PairView:
        """Both maps behind their adapters; a teacher that is neither warped nor adapted stays as it is stored.

        Args:
            to_teacher: metres of the student's grid -> metres of the teacher's; None where they are the same.

        Raises:
            MismatchError: a layer is not there, or its shape is not the one that was told at construction.
        """
        ours = self._layer("student", student, self.config.student, self.shapes[0])
        theirs: Tensor | Encoded = self._layer("teacher", teacher, self.config.teacher, self.shapes[1])
        inside: Region | None = None
        if to_teacher is not None or self.always_warped:
            matrix = placement(to_teacher, ours, self.warped_grid, self.teacher_grid)
            warped = warp(theirs, self.teacher_grid, self.warped_grid, matrix)
            theirs, inside = _known(warped.features, warped.inside), all_inside(warped.inside, self.grid.shape)
        if not isinstance(self.teacher_adapter, nn.Identity):
            theirs = only(self.teacher_adapter(decoded(theirs)), inside)
        return PairView(ours, theirs, self.student_adapter, inside)

    def _layer(self, who: str, layers: Mapping[str, Features], name: str, shape: tuple[int, int, int]) -> Features:
        found = layers.get(name)
        got = None if found is None else (found.values if isinstance(found, Encoded) else found).shape[1:]
        if found is None or got != shape:
            raise MismatchError(
                f"the {who}'s layer {name!r} is not the one that the objective was built for",
                where=f"distill.pairs, {self.config.label}",
                got=f"only {', '.join(layers)}" if got is None else tuple(got),
                expected=shape,
                cure="Hand over the layers, channels and grids that were given at construction",
            )
        return found


def _known(features: Tensor | Encoded, inside: Region) -> Tensor | Encoded:
    """0 where only a part of what was interpolated is known."""
    if isinstance(features, Encoded):
        return replace(features, values=only(features.values, inside))
    return only(features, inside)


def all_inside(inside: Bool[Tensor, "B _ _"], shape: tuple[int, int]) -> Bool[Tensor, "B _ _"]:
    """On cells that merge or split: those all of whose parts count."""
    return ~(fit((~inside).float(), shape) > 0)
