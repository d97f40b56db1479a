"""The schema of the distillation objective: which layers face each other, and which terms with which weights.

A setting typed `float | tuple[float, ...]` is one value for all of a term's pairs, or one for each in their order.
"""

from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cache.errors import ConfigError
from cache.strict import Strict

Weight = Annotated[float, Field(ge=0)]
Weights = Weight | tuple[Weight, ...]
Probability = Annotated[float, Field(ge=0, le=1)]

Criterion = Literal["mse", "l1", "smooth_l1"]
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
ForegroundMask = Literal[
    "gt",
    "gauss",
    "extended_binary",
    "gauss_plus_extended_binary",
    "gauss_plus_extended_binary_clamp",
    "gauss_plus_binary_clamp",
    "gauss_in_gt",
    "negative_linear_gauss_in_gt",
]
BackgroundMask = Literal["logical_not", "1minus"]
ScaleMask = Literal["none", "combine_gt", "separate_gt", "combine_extend", "separate_extend", "bg_only"]
RadiusName = Literal["centerpoint1", "centerpoint2", "centerpoint3", "maxwh"]
SpatialAttention = Literal["none", "teacher", "teacher_student"]
FalsePositives = Literal["none", "teacher", "student", "teacher_selected_student", "teacher+teacher_selected_student"]
RegionScale = Literal["average", "region"]
AffinityMode = Literal["none", "foreground", "foreground+fp", "attention"]

Setting = TypeVar("Setting")


def pick(value: Setting | tuple[Setting, ...], pair: int) -> Setting:
    """The setting of a term's pair number `pair`."""
    return value[pair] if isinstance(value, tuple) else value


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


class FeatureTerm(Strict):
    """What the terms on feature maps share."""

    name: str = ""
    """In the names of the logged terms; left out, it is the kind."""
    pairs: tuple[str, ...] = ()
    """Names of the pairs that the term looks at; empty: all."""


class AllTerm(FeatureTerm):
    """`all`: the mean absolute (p = 1) or squared (p = 2) difference over all cells."""

    kind: Literal["all"]
    p: Literal[1, 2] = 2
    weight: Weights = 1.0


class FitnetTerm(FeatureTerm):
    """`fitnet`: half the squared distance of hint and guided layer, a sample (Romero et al. 2015, equation 3)."""

    kind: Literal["fitnet"]
    weight: Weights = 1.0


class AttentionTransferTerm(FeatureTerm):
    """`attention_transfer`: distance of the normalised activation maps (Zagoruyko and Komodakis 2017, equation 2)."""

    kind: Literal["attention_transfer"]
    p: PositiveFloat = 2.0
    """The power to which activations are raised in the map."""
    weight: Weights = 1000.0


class ForegroundBackgroundTerm(FeatureTerm):
    """`foreground_background`: the difference inside and outside boxes, weighted apart."""

    kind: Literal["foreground_background"]
    criterion: Criterion = "mse"
    scale: bool = True
    fg_weight: Weights = 1.5e-3
    bg_weight: Weights = 4e-2


class LinfengzhangTerm(FeatureTerm):
    """`linfengzhang`: attention-guided distillation (Zhang and Ma, ICLR 2021)."""

    kind: Literal["linfengzhang"]
    spatial_temperature: PositiveFloat = 0.1
    channel_temperature: PositiveFloat = 0.1
    feature_weight: Weights = 1e-3
    channel_weight: Weights = 4e-3
    spatial_weight: Weights = 4e-3


class S2m2FeatureTerm(FeatureTerm):
    """`s2m2_ssd_feature`: the difference where the student's heatmap is right (TP) and wrong (FP, FN)."""

    kind: Literal["s2m2_ssd_feature"]
    mode: Literal["new", "old"] = "new"
    """`old` joins FP and FN in one region with one weight; `new` has three."""
    criterion: Criterion = "mse"
    threshold: Probability = 0.1
    tp_weight: Weights = 1.0
    fp_weight: Weights = 1.0
    fn_weight: Weights = 1.0
    fpfn_weight: Weights = 1.0


class NonLocalTerm(FeatureTerm):
    """`non_local`: the difference after a non-local block on either side."""

    kind: Literal["non_local"]
    criterion: Criterion = "mse"
    weight: Weights = 1.0


class AffinityTerm(FeatureTerm):
    """`affinity`: the cells' similarities to each other, in the teacher and in the student before its adapter."""

    kind: Literal["affinity"]
    every: PositiveInt = 16
    """Take every n-th cell, in row-major order."""
    split: PositiveInt = 1
    """Compare within this many random groups of cells, to save memory."""
    criterion: Criterion = "smooth_l1"
    weight: Weights = 1.0


class FgdTerm(FeatureTerm):
    """`fgd`: DistillBEV's own objective (ICCV 2023; docs/objective.md, equations 1 to 9), after focal and global
    distillation (FGD, CVPR 2022)."""

    kind: Literal["fgd"]
    feature_criterion: Criterion = "mse"
    channel_criterion: Criterion = "l1"
    spatial_criterion: Criterion = "l1"
    fg_weight: Weights = 1.5e-3
    bg_weight: Weights = 4e-2
    channel_weight: Weights = 0.25
    spatial_weight: Weights = 2.5e-3
    fp_weight: Weights = 0.0
    non_empty_weight: Weights = 0.0
    affinity_weight: Weights = 0.0
    spatial_attention: SpatialAttention | tuple[SpatialAttention, ...] = "teacher"
    channel_attention: bool = True
    spatial_temperature: PositiveFloat = 0.5
    channel_temperature: PositiveFloat = 0.5
    student_ratio: Annotated[float, Field(ge=0)] = 1.0
    """The share r of the student's attention in (A_t + r A_s) / (1 + r)."""
    foreground_mask: ForegroundMask = "gt"
    background_mask: BackgroundMask = "logical_not"
    scale_mask: ScaleMask = "combine_gt"
    radius: RadiusName = "centerpoint1"
    radius_scale: PositiveFloat = 1.0
    """Of `maxwh` only."""
    gauss_weight: Annotated[float, Field(ge=0)] = 0.5
    """Of the Gaussian in `gauss_plus_binary_clamp`."""
    context_cells: Annotated[float, Field(ge=0)] = 0.0
    """How many cells longer and wider a box is with its context; 0 for none."""
    context_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The foreground's value in the context ring."""
    false_positives: FalsePositives | tuple[FalsePositives, ...] = "none"
    fp_scale: RegionScale = "average"
    fp_epoch: NonNegativeInt = 0
    threshold: Probability = 0.1
    """A heatmap above it predicts an object."""
    gt_threshold: Probability | None = None
    """The ground truth below it holds none; left out, it is `threshold`."""
    affinity_mode: AffinityMode | tuple[AffinityMode, ...] = "none"
    affinity_criterion: Criterion = "smooth_l1"
    affinity_split: PositiveInt = 1
    affinity_top_k: PositiveInt = 256
    """Of mode `attention`: how many cells of the highest attention."""
    affinity_threshold: float | None = None
    """Of mode `attention`, instead of top_k: cells whose share of all attention is above it."""

    @model_validator(mode="after")
    def _fits_together(self) -> "FgdTerm":
        modes, attentions = _values(self.affinity_mode), _values(self.spatial_attention)
        conflicts = {
            "an extended scale needs an extended foreground: change scale_mask or foreground_mask": (
                self.scale_mask.endswith("extend") and self.foreground_mask in ("gt", *_INSIDE_BOXES)
            ),
            "negative_linear_gauss_in_gt divides by fg_weight: raise it above 0": (
                self.foreground_mask == "negative_linear_gauss_in_gt" and 0 in _values(self.fg_weight)
            ),
            "affinity_mode foreground+fp needs false positives in all its pairs: set false_positives": (
                "foreground+fp" in modes and "none" in _values(self.false_positives)
            ),
            "affinity_mode attention needs a spatial attention in all its pairs: set spatial_attention": (
                "attention" in modes and "none" in attentions
            ),
            "fp_weight does nothing without false positives: set false_positives, or fp_weight to 0": (
                any(_values(self.fp_weight)) and set(_values(self.false_positives)) == {"none"}
            ),
            "affinity_weight does nothing without a mode: set affinity_mode, or affinity_weight to 0": (
                any(_values(self.affinity_weight)) and set(modes) == {"none"}
            ),
            "a context ring needs both its width and its weight: set context_cells and context_weight": (
                (self.context_cells > 0) != (self.context_weight > 0)
            ),
        }
        for problem, holds in conflicts.items():
            if holds:
                what, cure = problem.split(": ")
                raise ConfigError(what, where=f"distill.terms, {self.name or self.kind}", cure=cure.capitalize())
        return self


class S2m2HeatmapTerm(Strict):
    """`s2m2_ssd_heatmap`: the heatmaps' difference where the student's is right (TP) and wrong (FP and FN)."""

    kind: Literal["s2m2_ssd_heatmap"]
    name: str = ""
    cache: NonNegativeInt = 0
    criterion: Criterion = "mse"
    threshold: Probability = 0.1
    tp_weight: Weight = 1.0
    fpfn_weight: Weight = 1.0


class GaussFocalTerm(Strict):
    """`gauss_focal_heatmap`: the Gaussian focal loss with the teacher's heatmap as the target."""

    kind: Literal["gauss_focal_heatmap"]
    name: str = ""
    cache: NonNegativeInt = 0
    weight: Weight = 1.0


class HeatmapTemperatureTerm(Strict):
    """`heatmap_temperature`: softened heatmaps (Hinton et al. 2015, equation 1)."""

    kind: Literal["heatmap_temperature"]
    name: str = ""
    cache: NonNegativeInt = 0
    temperature: PositiveFloat = 2.0
    over: Literal["classes", "cells", "each"] = "classes"
    """Softmax over the classes of a cell (their relations), over the cells of a class, or a sigmoid of each."""
    weight: Weight = 1.0


PairTerm = (
    AllTerm
    | FitnetTerm
    | AttentionTransferTerm
    | ForegroundBackgroundTerm
    | LinfengzhangTerm
    | S2m2FeatureTerm
    | NonLocalTerm
    | AffinityTerm
    | FgdTerm
)
HeatmapTerm = S2m2HeatmapTerm | GaussFocalTerm | HeatmapTemperatureTerm
Term = Annotated[PairTerm | HeatmapTerm, Field(discriminator="kind")]


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


_INSIDE_BOXES = ("gauss_in_gt", "negative_linear_gauss_in_gt")


def _values(setting: Setting | tuple[Setting, ...]) -> tuple[Setting, ...]:
    return setting if isinstance(setting, tuple) else (setting,)


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
