"""`fgd`: DistillBEV's own objective (docs/objective.md, equations 1 to 9)."""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from cache.errors import ConfigError
from student.distill.adapters import CellConv
from student.distill.attention import SpatialAttention, joint_attention
from student.distill.auto_scale import AutoScale
from student.distill.cell_weights import CellWeightConfig, CellWeights, weigh_cells
from student.distill.criteria import CRITERIA, Criterion
from student.distill.feature_stats import FeatureStats, as_float, full_precision, mask_cells
from student.distill.pairs import LayerPair, PairFeatures
from student.distill.parallel import single_threaded
from student.distill.predictions import BatchPredictions
from student.distill.regions import FalsePositives, false_positives, resize_map
from student.distill.terms.affinity import affinity
from student.distill.terms.base import (
    Losses,
    PairLoss,
    PairTerm,
    Probability,
    Scalar,
    Setting,
    Weights,
    masked_sum,
    pick,
)

AffinityMode = Literal["none", "foreground", "foreground+fp", "attention"]


class FgdTerm(PairTerm, CellWeightConfig):
    """`fgd`: DistillBEV's own objective (ICCV 2023), after focal and global distillation (FGD, CVPR 2022)."""

    kind: Literal["fgd"]
    feature_criterion: Criterion = "mse"
    channel_criterion: Criterion = "l1"
    spatial_criterion: Criterion = "l1"
    scale: Literal["none", "auto"] = "none"
    """"auto": the weights are those for the paper's teacher, and are scaled to this one's channels, cells and mean
    activation (docs/objective.md, `scale: auto`)."""
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
    false_positives: FalsePositives | tuple[FalsePositives, ...] = "none"
    fp_epoch: NonNegativeInt = 0
    """The first epoch of the false positives."""
    threshold: Probability = 0.1
    """A heatmap above it predicts an object."""
    gt_threshold: Probability | None = None
    """The ground truth below it contains no object; default: `threshold`."""
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
        in_boxes = ("gt", "gauss_in_gt", "negative_linear_gauss_in_gt")
        conflicts = {
            "an extended scale needs an extended foreground: change scale_mask or foreground_mask": (
                self.scale_mask.endswith("extend") and self.foreground_mask in in_boxes
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
            "scale auto has no channel attention, whose temperature it would change: set channel_attention to false": (
                self.scale == "auto" and self.channel_attention
            ),
            "scale auto is not defined for Gram matrices: set affinity_mode to none, or scale to none": (
                self.scale == "auto" and set(modes) != {"none"}
            ),
            "a context ring needs both its width and its weight: set context_cells and context_weight": (
                (self.context_cells > 0) != (self.context_weight > 0)
            ),
        }
        for problem, holds in conflicts.items():
            if holds:
                what, cure = problem.split(": ")
                raise ConfigError(what, where=f"distill.terms, {self.label}", cure=cure.capitalize())
        return self

    @property
    def finds_false_positives(self) -> bool:
        """Whether a pair looks for false positives, in the teacher's heatmap or beside it."""
        return set(_values(self.false_positives)) != {"none"}


def _values(setting: Setting | tuple[Setting, ...]) -> tuple[Setting, ...]:
    return setting if isinstance(setting, tuple) else (setting,)


_WEIGHTS = {
    "foreground": "fg_weight",
    "background": "bg_weight",
    "channel": "channel_weight",
    "spatial": "spatial_weight",
    "false_positive": "fp_weight",
    "non_empty": "non_empty_weight",
    "affinity": "affinity_weight",
}


class FgdLoss(PairLoss[FgdTerm]):
    """`fgd` on a pair."""

    def __init__(self, config: FgdTerm, index: int, pair: LayerPair) -> None:
        super().__init__(config, index, pair)
        self.cache, self.cell_m = pair.config.cache, pair.grid.cell_m
        self.weights = {name: self.weight(field) for name, field in _WEIGHTS.items()}
        self.attention: SpatialAttention = pick(config.spatial_attention, index)
        self.false_positives: FalsePositives = pick(config.false_positives, index)
        self.affinity: AffinityMode = pick(config.affinity_mode, index)
        if not config.channel_attention:
            self.weights["channel"] = 0.0
        if self.attention == "none":
            self.weights["spatial"] = 0.0
        self.spatial_adapter = CellConv() if self.weights["spatial"] else None

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        config = self.config
        stats = features.stats(config.feature_criterion, config.channel_temperature)
        scale = AutoScale.of(stats, self.cell_m) if config.scale == "auto" else None
        energy_scale = (1 if scale is None else scale.features) / stats.channels
        with single_threaded():
            cells = self._weigh_cells(predictions, features.valid_mask)
            attention = joint_attention(
                self.attention,
                stats.teacher_energy * energy_scale,
                stats.student_energy * energy_scale,
                config.spatial_temperature,
                config.student_ratio,
                features.valid_mask,
            )
            losses = self._by_region(stats, cells, attention)
            if self.weights["channel"]:
                losses["channel"] = channel_distance(stats, config.channel_criterion)
            if self.spatial_adapter is not None:
                losses["spatial"] = spatial_distance(stats, self.spatial_adapter, config.spatial_criterion)
        if self.weights["affinity"] and self.affinity != "none":
            losses["affinity"] = self._affinity(features, cells, attention)
        if scale is not None:
            losses = self._scale(losses, scale)
        return {name: value * self.weights[name] for name, value in losses.items()}

    def _weigh_cells(
        self, predictions: BatchPredictions, valid_mask: Bool[Tensor, "B H W"] | None = None
    ) -> CellWeights:
        ratio = self.weights["background"] / self.weights["foreground"] if self.weights["foreground"] else 0.0
        mistakes = self._false_positives(predictions)
        occupied = None
        if self.weights["non_empty"]:
            occupied = resize_map(predictions.teachers[self.cache].canvas_mask.float(), self.grid.shape) > 0
        return weigh_cells(self.config, predictions.boxes, self.grid, mistakes, occupied, ratio, valid_mask)

    def _false_positives(self, predictions: BatchPredictions) -> Bool[Tensor, "B H W"] | None:
        if self.false_positives == "none" or predictions.epoch < self.config.fp_epoch:
            return None
        teacher = predictions.teacher_max(self.cache)
        shape = (teacher.shape[1], teacher.shape[2])
        mask = false_positives(
            self.false_positives,
            teacher,
            resize_map(predictions.student_max, shape),
            resize_map(predictions.truth_max, shape),
            self.config.threshold,
            self.config.gt_threshold,
        )
        return resize_map(mask.float(), self.grid.shape) > 0

    def _by_region(self, stats: FeatureStats, cells: CellWeights, attention: Float[Tensor, "B H W"]) -> Losses:
        error = stats.weighted_error if self.config.channel_attention else stats.error
        # As published, the channel attention weighs false positives and non-empty cells even where it is off.
        mistaken = error if self.config.scale == "auto" else stats.weighted_error
        regions = {
            "foreground": (error, cells.foreground),
            "background": (error, cells.background),
            "false_positive": (mistaken, cells.false_positive),
            "non_empty": (mistaken, cells.non_empty),
        }
        return {
            name: masked_sum(values, weight * attention)
            for name, (values, weight) in regions.items()
            if weight is not None
        }

    def _scale(self, losses: Losses, scale: AutoScale) -> Losses:
        config = self.config
        regions = scale.by_channels(config.feature_criterion)
        factors = dict.fromkeys(("background", "false_positive", "non_empty"), regions)
        factors["foreground"] = regions * scale.foreground
        factors["channel"] = scale.by_channels(config.channel_criterion)
        factors["spatial"] = scale.by_cells(config.spatial_criterion)
        return {name: value * factors[name] for name, value in losses.items()}

    def _affinity(self, features: PairFeatures, cells: CellWeights, attention: Float[Tensor, "B H W"]) -> Scalar:
        config, selected = self.config, cells.objects
        if self.affinity == "foreground+fp":
            selected = selected | cells.false_positive_mask
        elif self.affinity == "attention":
            selected = attended_cells(attention, config.affinity_top_k, config.affinity_threshold)
        student = full_precision(features.adapted)
        teacher = as_float(features.teacher, student.dtype)
        return selected_affinity(student, teacher, selected, config.affinity_criterion, config.affinity_split)


def channel_distance(stats: FeatureStats, criterion: Criterion) -> Scalar:
    """Distance of the channel means, summed over channels, a sample (equation 7)."""
    difference = (stats.student_channels - stats.teacher_channels) / stats.cells[:, None]
    return CRITERIA[criterion](difference).sum() / len(difference)


def spatial_distance(stats: FeatureStats, adapter: nn.Module, criterion: Criterion) -> Scalar:
    """Distance of the teacher's channel mean and the student's after a 3x3 convolution, over cells (equation 8)."""
    student = adapter(stats.student_sum[:, None] / stats.channels)[:, 0]
    difference = mask_cells(student - stats.teacher_sum / stats.channels, stats.valid_mask)
    return CRITERIA[criterion](difference).sum() / len(student)


def selected_affinity(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    selected: Bool[Tensor, "B H W"],
    criterion: Criterion = "smooth_l1",
    split: int = 1,
) -> Scalar:
    """Affinity over the selected cells of each sample, summed over samples (equation 9)."""
    parts = [
        affinity(s[:, mask].mT, t[:, mask].mT, criterion, split)
        for s, t, mask in zip(student, teacher, selected, strict=True)
    ]
    return torch.stack(parts).sum()


def attended_cells(
    attention: Float[Tensor, "B H W"], top_k: int, threshold: float | None = None
) -> Bool[Tensor, "B H W"]:
    """The `top_k` cells of the highest attention, or those whose share of the sum is above a threshold."""
    flat = attention.flatten(1)
    if threshold is not None:
        return attention > threshold * flat.sum(dim=1)[:, None, None]
    best = flat.topk(min(top_k, flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, best, True).view_as(attention)
