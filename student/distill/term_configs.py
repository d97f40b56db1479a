"""The schema of the terms of the distillation objective.

A setting typed `float | tuple[float, ...]` is one value for all of a term's pairs, or one for each in their order.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cache.config import Strict
from cache.errors import ConfigError

Weight = Annotated[float, Field(ge=0)]
Weights = Weight | tuple[Weight, ...]
Probability = Annotated[float, Field(ge=0, le=1)]

Criterion = Literal["mse", "l1", "smooth_l1"]
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

_INSIDE_BOXES = ("gauss_in_gt", "negative_linear_gauss_in_gt")

Setting = TypeVar("Setting")


def pick(value: Setting | tuple[Setting, ...], pair: int) -> Setting:
    """The setting of a term's pair number `pair`."""
    return value[pair] if isinstance(value, tuple) else value


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


def _values(setting: Setting | tuple[Setting, ...]) -> tuple[Setting, ...]:
    return setting if isinstance(setting, tuple) else (setting,)
