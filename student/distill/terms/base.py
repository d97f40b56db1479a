"""What the terms share: settings, and the modules that compute a term from a pair's features or from heatmaps."""

from typing import Annotated, Generic, TypeVar

from jaxtyping import Float
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from cache.config import Strict
from student.distill.pairs import LayerPair

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


class HeatmapLoss(nn.Module, Generic[Config]):
    """A term on heatmaps: forward(predictions) -> weighted losses by name, 0 where a region is empty."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


def masked_sum(error: Float[Tensor, "B H W"], weight: Float[Tensor, "B H W"]) -> Scalar:
    """Sum of error times weight over cells, a sample (docs/objective.md, equation 6)."""
    return (error * weight).sum() / len(error)
