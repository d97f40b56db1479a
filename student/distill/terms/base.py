"""What the terms share: settings, and the modules that compute a term from a pair's features or from heatmaps."""

from typing import Annotated, ClassVar, Generic, TypeVar

from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from cache.config import Strict
from student.distill.feature_stats import split_stored
from student.distill.pairs import LayerPair, PairFeatures
from student.distill.sampling import Corners, Sums, SumsOverPoints, points_in_boxes

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

    weighs_cells: ClassVar[bool] = True
    """Whether a pair's `weight_by` reaches it: it is made of errors of cells."""
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

    def over_points(
        self,
        sums: Sums,
        features: PairFeatures,
        boxes: Float[Tensor, "B M D"],
        parts: Float[Tensor, "Q 2"],
        enlarge_m: float = 0.0,
    ) -> tuple[Float[Tensor, "n"], Bool[Tensor, "B M Q"]]:
        """Sums of the pair's features at Q points of M boxes (see `points_in_boxes`), and which points are in them.

        Those are the points around which all cells are valid, of boxes with a size.
        """
        points, shape = points_in_boxes(boxes, parts, enlarge_m).flatten(1, 2), (boxes.shape[1], len(parts))
        known = (boxes[..., 3:5] > 0).all(dim=-1).repeat_interleave(len(parts), dim=1)
        corners = Corners.of(points, self.grid, features.valid_mask).among(known)
        values, stored = split_stored(features.teacher)
        found = SumsOverPoints.apply(features.adapted, values, stored, corners, shape, sums)
        return found, corners.inside.unflatten(1, shape)


class HeatmapLoss(nn.Module, Generic[Config]):
    """A term on heatmaps: forward(predictions) -> weighted losses by name, 0 where a region is empty."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


def masked_sum(error: Float[Tensor, "B H W"], weight: Float[Tensor, "B H W"]) -> Scalar:
    """Sum of error times weight over cells, a sample (docs/objective.md, equation 6)."""
    return (error * weight).sum() / len(error)
