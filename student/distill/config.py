"""Configuration of the distillation objective: pairs of layers, terms, and schedule."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cache.config import Strict
from cache.errors import ConfigError
from student.distill.pairs import PairConfig
from student.distill.terms import Term
from student.distill.terms.base import DepthTerm, PairTerm, Probability, ResponseTerm
from student.distill.terms.cross_head import CrossHeadTerm


class ForegroundConfig(Strict):
    """Where the terms' objects come from; a bare string is a source."""

    source: Literal["boxes", "teacher", "boxes_or_teacher"] = "boxes"
    """The labels' boxes, the boxes at the peaks of a teacher's heatmap, or the latter on samples without labels."""
    cache: NonNegativeInt = 0
    """Index of that teacher, where there are several caches."""
    threshold: Probability = 0.3
    """The teacher's peaks are above it."""
    peaks: PositiveInt = 100
    """Of the teacher's heatmap in a sample, at most."""

    @model_validator(mode="before")
    @classmethod
    def _bare_source(cls, values: Any) -> Any:
        return {"source": values} if isinstance(values, str) else values


class DistillConfig(Strict):
    """Pairs of layers and terms. Epochs count from 0."""

    pairs: tuple[PairConfig, ...] = ()
    terms: tuple[Term, ...] = Field(min_length=1)
    foreground: ForegroundConfig = ForegroundConfig()
    inherit_head: bool = False
    """Start the student's task heads from the teacher's weights."""
    inherit_shared_conv: bool = False
    """Start the convolution before the task heads from the teacher's, too; the student's neck must have the channels
    of the teacher's."""
    pseudo_labels: Probability | None = None
    """Learn boxes on the frames of data.unlabelled_split from those that the first teacher predicts there with at least
    this score; its store must hold head maps. Null: only the terms and the depth loss see these frames."""
    multi_scale_epoch: NonNegativeInt = 0
    """The first epoch of pairs on the student's backbone layers."""
    two_stage_epoch: NonNegativeInt = 0
    """The first epoch of the student's own detection losses."""

    @model_validator(mode="after")
    def _names_and_counts(self) -> "DistillConfig":
        labels = tuple(pair.label for pair in self.pairs)
        _require_unique("pair", labels)
        _require_unique("term", tuple(term.label for term in self.terms))
        for term in self.terms:
            if isinstance(term, PairTerm):
                _check_pairs(term, labels)
        for pair in self.pairs:
            _check_weight(
                pair, [term for term in self.terms if isinstance(term, PairTerm) and pair in self.pairs_of(term)]
            )
        return self

    def pairs_of(self, term: PairTerm) -> tuple[PairConfig, ...]:
        """The pairs of a term, in its order."""
        by_label = {pair.label: pair for pair in self.pairs}
        return tuple(by_label[label] for label in term.pairs or by_label)

    @property
    def boxed_caches(self) -> frozenset[int]:
        """The caches whose head maps are read, beside the heatmap."""
        caches = {term.cache for term in self.terms if isinstance(term, ResponseTerm)} | self.crossed_caches
        return frozenset(caches if self.foreground.source == "boxes" else caches | {self.foreground.cache})

    @property
    def crossed_caches(self) -> frozenset[int]:
        """The caches whose heads run on the student's features."""
        crossed = [term for term in self.terms if isinstance(term, CrossHeadTerm)]
        return frozenset(pair.cache for term in crossed for pair in self.pairs_of(term))

    @property
    def compares_depth(self) -> bool:
        """Whether a term compares the student's depth with the LiDAR points in the images."""
        return any(isinstance(term, DepthTerm) for term in self.terms)


def _require_unique(what: str, names: tuple[str, ...]) -> None:
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise ConfigError(
            f"two {what}s share a name, so their logged losses would too",
            where=f"distill.{what}s",
            got=", ".join(duplicates),
            cure=f"Give each {what} a `name` of its own",
        )


def _check_weight(pair: PairConfig, terms: Sequence[PairTerm]) -> None:
    """Raise unless the weights of a pair's cells reach a term."""
    if pair.weight_by != "none" and not any(term.weighs_cells for term in terms):
        raise ConfigError(
            "weight_by does nothing: no term of the pair is made of errors of cells",
            where=f"distill.pairs, {pair.label}",
            got=", ".join(term.label for term in terms) or "no term",
            expected="fgd, all, foreground_background, fitnet, linfengzhang, s2m2_ssd_feature or bevdistill_feature",
            cure="Add such a term, or leave weight_by out",
        )


def _check_pairs(term: PairTerm, labels: tuple[str, ...]) -> None:
    """Raise unless a term's pairs are listed, and its settings are one for all pairs or one for each."""
    where = f"distill.terms, {term.label}"
    unknown = [label for label in term.pairs if label not in labels]
    if unknown or not labels:
        raise ConfigError(
            "a term needs pairs of layers that are listed",
            where=where,
            got=", ".join(unknown) or "no pairs at all",
            expected=", ".join(labels) or "at least one entry under distill.pairs",
            cure="Correct the term's `pairs`, or add the pair to distill.pairs",
        )
    pairs = term.pairs or labels
    for field, value in term:
        if isinstance(value, tuple) and field != "pairs" and len(value) != len(pairs):
            raise ConfigError(
                f"{field} has the wrong number of values",
                where=where,
                got=len(value),
                expected=f"one for all pairs, or one for each of the {len(pairs)} pairs ({', '.join(pairs)})",
                cure="List one value for each pair, in the order of the pairs",
            )
