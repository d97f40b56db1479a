"""From a term's configuration to the module that computes it. A pair term has one module for each of its pairs."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cache.errors import ConfigError
from student.distill import losses
from student.distill.adapters import CellConv
from student.distill.criteria import CRITERIA
from student.distill.feature_stats import counted_cells, decoded, full, only
from student.distill.fgd import Fgd
from student.distill.masks import background, bg_scale, box_masks
from student.distill.pairs import LayerPair, PairView
from student.distill.predictions import Answers
from student.distill.regions import fit, region_decomposition
from student.distill.relations import NonLocal, affinity
from student.distill.responses import SOFTENED, clipped, gauss_focal, s2m2_heatmap
from student.distill.term_configs import (
    AffinityTerm,
    AllTerm,
    AttentionTransferTerm,
    FeatureTerm,
    FitnetTerm,
    ForegroundBackgroundTerm,
    GaussFocalTerm,
    HeatmapTemperatureTerm,
    LinfengzhangTerm,
    NonLocalTerm,
    S2m2FeatureTerm,
    S2m2HeatmapTerm,
    pick,
)

Losses = dict[str, Tensor]
Config = TypeVar("Config", bound=FeatureTerm)


class OnPair(nn.Module, Generic[Config]):
    """A term on one pair: forward(view, answers) -> weighted scalars by name."""

    def __init__(self, config: Config, index: int, pair: LayerPair) -> None:
        super().__init__()
        self.config, self.index, self.grid = config, index, pair.grid

    def weight(self, field: str = "weight") -> float:
        """A weight of this pair."""
        return pick(getattr(self.config, field), self.index)


class All(OnPair[AllTerm]):
    """`all`."""

    def forward(self, view: PairView, answers: Answers) -> Losses:
        moments = view.moments("mse" if self.config.p == 2 else "l1")
        return {"feature": self.weight() * losses.all_cells(moments)}


class Fitnet(OnPair[FitnetTerm]):
    """`fitnet`."""

    def forward(self, view: PairView, answers: Answers) -> Losses:
        return {"feature": self.weight() * losses.fitnet(view.moments("mse"))}


class AttentionTransfer(OnPair[AttentionTransferTerm]):
    """`attention_transfer`."""

    def forward(self, view: PairView, answers: Answers) -> Losses:
        value = losses.attention_transfer(view.adapted, view.teacher, self.config.p, view.inside)
        return {"attention": self.weight() * value}


class ForegroundBackground(OnPair[ForegroundBackgroundTerm]):
    """`foreground_background`, scaled by the larger of the two scales as fgd's combine_gt is."""

    def forward(self, view: PairView, answers: Answers) -> Losses:
        masks, moments = box_masks(answers.boxes, self.grid), view.moments(self.config.criterion)
        objects = only(masks.foreground, view.inside)
        scale = torch.ones_like(objects)
        if self.config.scale:
            scale = torch.maximum(masks.fg_scale, bg_scale(objects.sum(dim=(1, 2)), moments.cells))
        ground = background("logical_not", objects)  # the error is 0 in cells that do not count
        return {
            "foreground": self.weight("fg_weight") * losses.masked_sum(moments.error, objects * scale),
            "background": self.weight("bg_weight") * losses.masked_sum(moments.error, ground * scale),
        }


class Linfengzhang(OnPair[LinfengzhangTerm]):
    """`linfengzhang`; its channel and spatial terms look at the student before its adapter, through adapters of their
    own."""

    def __init__(self, config: LinfengzhangTerm, index: int, pair: LayerPair) -> None:
        super().__init__(config, index, pair)
        if pair.config.student_adapter.factor > 1 and self.weight("spatial_weight"):
            raise ConfigError(
                "linfengzhang's spatial term compares the student's cells before its adapter",
                where=f"distill.pairs, {pair.config.label}",
                got=f"an adapter with factor {pair.config.student_adapter.factor}",
                cure="Set spatial_weight to 0 for this pair, or resize the teacher instead",
            )
        self.channel_adapter = nn.Linear(pair.student_channels, pair.channels)
        self.spatial_adapter = CellConv()

    def forward(self, view: PairView, answers: Answers) -> Losses:
        moments = view.moments("mse", self.config.channel_temperature)
        raw = full(view.raw)
        means = raw.sum(dim=(2, 3)) / counted_cells(raw, view.raw_inside)[:, None]
        # A sample without a cell that counts has no means.
        known = 1.0 if view.inside is None else view.inside.any(dim=(1, 2))[:, None]
        channel = losses.distance(
            self.channel_adapter(means) * known, moments.teacher_channels / moments.cells[:, None]
        )
        found = {
            "feature": losses.attended_distance(moments, self.config.spatial_temperature),
            "channel": channel,
        }
        if self.weight("spatial_weight"):
            spatial = self.spatial_adapter(raw.mean(dim=1, keepdim=True))[:, 0]
            found["spatial"] = losses.distance(only(spatial, view.inside), moments.teacher_sum / moments.channels)
        return {name: self.weight(f"{name}_weight") * value for name, value in found.items()}


class S2m2Feature(OnPair[S2m2FeatureTerm]):
    """`s2m2_ssd_feature`."""

    def forward(self, view: PairView, answers: Answers) -> Losses:
        moments = view.moments(self.config.criterion)
        shape = self.grid.shape
        regions = region_decomposition(
            fit(answers.student_strongest, shape), fit(answers.truth, shape), self.config.threshold
        )
        parts = {"tp": regions.true_positive, "fp": regions.false_positive, "fn": regions.false_negative}
        if self.config.mode == "old":
            parts = {"tp": regions.true_positive, "fpfn": regions.false_positive | regions.false_negative}
        return {
            name: self.weight(f"{name}_weight")
            * losses.mean_within(moments.error, only(region, view.inside), moments.channels)
            for name, region in parts.items()
        }


class NonLocalDifference(OnPair[NonLocalTerm]):
    """`non_local`: the pair's adapter follows the student's block."""

    def __init__(self, config: NonLocalTerm, index: int, pair: LayerPair) -> None:
        super().__init__(config, index, pair)
        self.student, self.teacher = NonLocal(pair.student_channels), NonLocal(pair.channels)

    def forward(self, view: PairView, answers: Answers) -> Losses:
        student = only(view.adapt(self.student(full(view.raw), view.raw_inside)), view.inside)
        difference = student - self.teacher(decoded(view.teacher, student.dtype), view.inside)
        values = counted_cells(student, view.inside).sum() * student.shape[1]
        return {"relation": self.weight() * CRITERIA[self.config.criterion](difference).sum() / values}


class Affinity(OnPair[AffinityTerm]):
    """`affinity`, of the student before its adapter."""

    def forward(self, view: PairView, answers: Answers) -> Losses:
        student, every = full(view.raw), self.config.every
        teacher = decoded(view.teacher, student.dtype)
        student, teacher = (x.flatten(2)[..., ::every].mT for x in (student, teacher))
        inside = None if view.inside is None else view.inside.flatten(1)[:, ::every]
        value = affinity(student, teacher, self.config.criterion, self.config.split, inside)
        return {"affinity": self.weight() * value}


def s2m2_heatmap_term(config: S2m2HeatmapTerm, answers: Answers) -> Losses:
    """`s2m2_ssd_heatmap`."""
    regions = region_decomposition(answers.student_strongest, answers.truth, config.threshold)
    student, teacher = clipped(full(answers.student_logits)), answers.teacher_on_student(config.cache)
    right, wrong = s2m2_heatmap(student, teacher, regions, config.criterion, answers.teachers[config.cache].inside)
    return {"tp": config.tp_weight * right, "fpfn": config.fpfn_weight * wrong}


def gauss_focal_term(config: GaussFocalTerm, answers: Answers) -> Losses:
    """`gauss_focal_heatmap`, one term for each of the head's tasks."""
    student, teacher = clipped(full(answers.student_logits)), answers.teacher_on_student(config.cache)
    inside = answers.teachers[config.cache].inside
    peaks = only((answers.truth_by_class == 1).float(), inside)
    return {
        f"task{task}": config.weight * gauss_focal(student[:, part], teacher[:, part], peaks[:, part].sum(), inside)
        for task, part in enumerate(answers.task_slices)
    }


def heatmap_temperature_term(config: HeatmapTemperatureTerm, answers: Answers) -> Losses:
    """`heatmap_temperature`."""
    teacher = answers.teacher_on_student(config.cache).logit()
    inside = answers.teachers[config.cache].inside
    value = SOFTENED[config.over](full(answers.student_logits), teacher, config.temperature, inside)
    return {config.over: config.weight * value}


PAIR_TERMS: dict[str, Callable[..., nn.Module]] = {
    "all": All,
    "fitnet": Fitnet,
    "attention_transfer": AttentionTransfer,
    "foreground_background": ForegroundBackground,
    "linfengzhang": Linfengzhang,
    "s2m2_ssd_feature": S2m2Feature,
    "non_local": NonLocalDifference,
    "affinity": Affinity,
    "fgd": Fgd,
}
HEATMAP_TERMS: dict[str, Callable[[Any, Answers], Losses]] = {
    "s2m2_ssd_heatmap": s2m2_heatmap_term,
    "gauss_focal_heatmap": gauss_focal_term,
    "heatmap_temperature": heatmap_temperature_term,
}
