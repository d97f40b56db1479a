"""What the terms share: settings, and the modules that compute a term from a pair's features or from heatmaps."""

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from cache.config import Strict
from student.distill.pairs import LayerPair, PairFeatures
from student.distill.sampling import Corners

Losses = dict[str, Float[Tensor, ""]]
Scalar = Float[Tensor, ""]
Setting = TypeVar("Setting")

Weight = Annotated[float, Field(ge=0)]
Weights = Weight | tuple[Weight, ...]
"""One value for all of a term's pairs, or one for each in their order."""
Probability = Annotated[float, Field(ge=0, le=1)]


def pick(value: Setting | tuple[Setting, ...], pair: int) -> Setting:
    """The setting of a term's pair number `pair`."""
    return value[pair] if isinstance(value, tuple) else value


class TermConfig(Strict):
    """A term: its kind, and its name in the names of the logged losses (default: the kind)."""

    kind: str
    name: str = ""

    @property
    def label(self) -> str:
        """The name or, by default, the kind."""
        return self.name or self.kind


class PairTerm(TermConfig):
    """A term on pairs of feature maps."""

    pairs: tuple[str, ...] = ()
    """Names of the term's pairs; empty: all."""


class HeatmapTerm(TermConfig):
    """A term on heatmaps."""

    cache: NonNegativeInt = 0
    """Index of the teacher, where there are several caches."""


class ResponseTerm(HeatmapTerm):
    """A term on heatmaps and the head's other maps."""


class DepthTerm(TermConfig):
    """A term on the student's depth."""


Config = TypeVar("Config", bound=TermConfig)


class PairLoss(nn.Module, Generic[Config]):
    """A term on one pair: forward(features, predictions) -> weighted losses by name, 0 where a region is empty.

    Args:
        index: of the pair among the term's pairs.
    """

    def __init__(self, config: Config, index: int, pair: LayerPair) -> None:
        super().__init__()
        self.config, self.index, self.grid = config, index, pair.grid

    def weight(self, field: str = "weight") -> float:
        """A weight of this pair."""
        return pick(getattr(self.config, field), self.index)

    def at_points(self, features: PairFeatures, points: Float[Tensor, "B M Q 2"]) -> "PointFeatures":
        """The pair's features at Q points of M boxes, in metres."""
        corners, shape = Corners.of(points.flatten(1, 2), self.grid, features.valid_mask), points.shape[1:3]
        student, teacher = (corners.sample(maps) for maps in (features.adapted, features.teacher))
        return PointFeatures(
            student=student.unflatten(1, shape),
            teacher=teacher.to(student.dtype).unflatten(1, shape),
            inside=corners.inside.unflatten(1, shape),
        )


@dataclass(frozen=True, kw_only=True)
class PointFeatures:
    """Features of student and teacher at Q points of M boxes; 0 at points that are not inside.

    inside: whether all cells around a point are valid.
    """

    student: Float[Tensor, "B M Q C"]
    teacher: Float[Tensor, "B M Q C"]
    inside: Bool[Tensor, "B M Q"]


class HeatmapLoss(nn.Module, Generic[Config]):
    """A term on heatmaps: forward(predictions) -> weighted losses by name, 0 where a region is empty."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


def masked_sum(error: Float[Tensor, "B H W"], weight: Float[Tensor, "B H W"]) -> Scalar:
    """Sum of error times weight over cells, a sample (docs/objective.md, equation 6)."""
    return (error * weight).sum() / len(error)
