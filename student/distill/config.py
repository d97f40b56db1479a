"""The schema of the distillation objective: which layers face each other, and which terms with which weights."""

from collections import Counter
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cache.config import Strict
from cache.errors import ConfigError
from student.distill.term_configs import FeatureTerm, Term

Channels = Literal["identity", "1x1conv", "3x3conv", "mlp", "2layer", "3layer"]
Resizing = Literal[
    "upsample",
    "upsample_1x1conv",
    "upsample_2layer",
    "upsample_3layer",
    "downsample_2layer",
    "downsample_3layer",
    "avgpool",
    "avgpool_1x1conv",
    "avgpool_3layer",
    "maxpool",
    "maxpool_1x1conv",
]


class AdapterConfig(Strict):
    """What a feature map goes through before it is compared; the names are those of the public code.

    `upsample*` and `downsample*` change the number of cells by `factor`, as do the pools. A bare string is a kind.
    """

    kind: Channels | Resizing = "identity"
    factor: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _bare_kind(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _factor_where_it_counts(self) -> "AdapterConfig":
        resizes = self.kind.startswith(("upsample", "downsample", "avgpool", "maxpool"))
        if resizes != (self.factor > 1):
            raise ConfigError(
                f"the adapter {self.kind!r} and its factor do not fit",
                got=self.factor,
                expected="2 or more" if resizes else "1: this adapter keeps the number of cells",
                cure="Set `factor`, or choose an upsample_*, downsample_*, avgpool or maxpool adapter",
            )
        return self


class PairConfig(Strict):
    """A student's layer that learns from a teacher's layer."""

    student: str
    teacher: str
    student_adapter: AdapterConfig = AdapterConfig()
    teacher_adapter: AdapterConfig = AdapterConfig()
    cache: NonNegativeInt = 0
    """Which of the teachers, where there are several caches."""
    name: str = ""
    """In the names of the logged terms; left out, it follows from the layers."""

    @property
    def label(self) -> str:
        """`head`, or `backbone0-head` where the layers differ, with the cache's number unless it is the first."""
        layers = self.student if self.student == self.teacher else f"{self.student}-{self.teacher}"
        return self.name or (layers if self.cache == 0 else f"{layers}@{self.cache}")


class DistillConfig(Strict):
    """Pairs of layers and terms. Epochs count from 0."""

    pairs: tuple[PairConfig, ...] = ()
    terms: tuple[Term, ...] = Field(min_length=1)
    inherit_head: bool = False
    """Start the student's task heads from the teacher's weights."""
    multi_scale_epoch: NonNegativeInt = 0
    """Pairs on the student's backbone layers join in at this epoch."""
    two_stage_epoch: NonNegativeInt = 0
    """The student's own detection losses join in at this epoch."""

    @model_validator(mode="after")
    def _names_and_counts(self) -> "DistillConfig":
        _refuse_twins("pair", [pair.label for pair in self.pairs])
        _refuse_twins("term", [term.name or term.kind for term in self.terms])
        for term in self.terms:
            if isinstance(term, FeatureTerm):
                _check_pairs(term, tuple(pair.label for pair in self.pairs))
        return self

    def pairs_of(self, term: FeatureTerm) -> tuple[PairConfig, ...]:
        """The pairs that a term looks at, in the term's order."""
        by_label = {pair.label: pair for pair in self.pairs}
        return tuple(by_label[label] for label in term.pairs or by_label)


def _refuse_twins(what: str, names: list[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise ConfigError(
            f"two {what}s share a name, so their logged losses would too",
            where=f"distill.{what}s",
            got=", ".join(twins),
            cure=f"Give each {what} a `name` of its own",
        )


def _check_pairs(term: FeatureTerm, known: tuple[str, ...]) -> None:
    where = f"distill.terms, {term.name or term.kind}"  # type: ignore[attr-defined]
    strangers = [label for label in term.pairs if label not in known]
    if strangers or not known:
        raise ConfigError(
            "a term needs pairs of layers that are listed",
            where=where,
            got=", ".join(strangers) or "no pairs at all",
            expected=", ".join(known) or "at least one entry under distill.pairs",
            cure="Correct the term's `pairs`, or add the pair to distill.pairs",
        )
    count = len(term.pairs or known)
    for field, value in term:
        if isinstance(value, tuple) and field != "pairs" and len(value) != count:
            raise ConfigError(
                f"{field} has the wrong number of values",
                where=where,
                got=len(value),
                expected=f"one for all pairs, or one for each of the {count} pairs ({', '.join(term.pairs or known)})",
                cure="List one value for each pair, in the order of the pairs",
            )
