"""fgd, DistillBEV's own objective: the cells' weights, and the terms that they weigh."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cache.geometry.grid import BevGrid
from student.distill.adapters import CellConv
from student.distill.attention import joint_attention
from student.distill.feature_stats import Moments, decoded, full
from student.distill.losses import channel_term, masked_sum, spatial_term
from student.distill.masks import background, bg_scale, box_masks, extension, foreground, region_share, scales
from student.distill.pairs import LayerPair, PairView
from student.distill.predictions import Answers
from student.distill.regions import false_positives, fit, region_scale
from student.distill.relations import attended_cells, selected_affinity
from student.distill.term_configs import AffinityMode, FalsePositives, FgdTerm, SpatialAttention, pick
from student.distill.threads import one_thread

Map = Float[Tensor, "B H W"]
Region = Bool[Tensor, "B H W"]


@dataclass(frozen=True, kw_only=True)
class CellWeights:
    """Which cells count in which region, and how much (mask times scale, before attention).

    false_positive, non_empty: None where that region is not asked for; those cells are background then.
    objects: where the foreground mask is not 0. mistaken: the false positives.
    """

    foreground: Map
    background: Map
    false_positive: Map | None
    non_empty: Map | None
    objects: Region
    mistaken: Region


def weigh_cells(
    config: FgdTerm,
    boxes: Float[Tensor, "B M D"],
    grid: BevGrid,
    answered: Region | None = None,
    occupied: Region | None = None,
    bg_over_fg: float = 0.0,
    inside: Region | None = None,
) -> CellWeights:
    """Foreground, background, false positives and non-empty ground of a batch.

    Args:
        boxes: x, y, z, dx, dy, dz, yaw, ...; padding has no size.
        answered: cells that a network takes for an object without reason; those in the foreground do not count.
        occupied: cells that hold points; those in the foreground or in false positives do not count.
        bg_over_fg: background weight over foreground weight, for `negative_linear_gauss_in_gt`.
        inside: the cells that count; the others are in no region and in no region's number.
    """
    covered = box_masks(boxes, grid, config.context_cells, config.context_weight)
    wide = extension(boxes, grid, config.radius, config.radius_scale) if config.foreground_mask != "gt" else None
    objects = foreground(
        config.foreground_mask,
        covered.foreground,
        None if wide is None else wide.gaussian,
        config.gauss_weight,
        bg_over_fg,
    )
    if inside is None:
        inside = torch.ones_like(objects, dtype=torch.bool)
    objects = objects * inside
    free = inside & (objects == 0)
    mistaken = free & answered if answered is not None else torch.zeros_like(free)
    non_empty = free & occupied & ~mistaken if occupied is not None else torch.zeros_like(free)
    taken = (inside & (covered.foreground != 0)).sum(dim=(1, 2)).float()
    if answered is not None or occupied is not None:
        taken = objects.sum(dim=(1, 2)) + (mistaken | non_empty).sum(dim=(1, 2))
    share = bg_scale(taken, inside.sum(dim=(1, 2)).float()).expand_as(objects)
    fg_scale, rest_scale = scales(config.scale_mask, covered.fg_scale, None if wide is None else wide.scale, share)
    ground = background(config.background_mask, objects) * (inside & ~(mistaken | non_empty))
    return CellWeights(
        foreground=objects * fg_scale,
        background=ground * rest_scale,
        false_positive=region_scale(config.fp_scale, mistaken) if answered is not None else None,
        non_empty=region_share(non_empty) if occupied is not None else None,
        objects=objects != 0,
        mistaken=mistaken,
    )


class Fgd(nn.Module):
    """The terms of fgd for one pair."""

    def __init__(self, config: FgdTerm, index: int, pair: LayerPair) -> None:
        super().__init__()
        self.config, self.grid, self.cache = config, pair.grid, pair.config.cache
        self.weights = {
            "foreground": pick(config.fg_weight, index),
            "background": pick(config.bg_weight, index),
            "channel": pick(config.channel_weight, index) if config.channel_attention else 0.0,
            "spatial": pick(config.spatial_weight, index),
            "false_positive": pick(config.fp_weight, index),
            "non_empty": pick(config.non_empty_weight, index),
            "affinity": pick(config.affinity_weight, index),
        }
        self.attention: SpatialAttention = pick(config.spatial_attention, index)
        self.false_positives: FalsePositives = pick(config.false_positives, index)
        self.affinity: AffinityMode = pick(config.affinity_mode, index)
        if self.attention == "none":
            self.weights["spatial"] = 0.0
        self.spatial_adapter = CellConv() if self.weights["spatial"] else None

    def forward(self, view: PairView, answers: Answers) -> dict[str, Tensor]:
        """Weighted terms by name."""
        config = self.config
        moments = view.moments(config.feature_criterion, config.channel_temperature)
        with one_thread():
            cells = self._cells(answers, view.inside)
            attention = joint_attention(
                self.attention,
                moments.teacher_energy / moments.channels,
                moments.student_energy / moments.channels,
                config.spatial_temperature,
                config.student_ratio,
                view.inside,
            )
            losses = self._by_region(moments, cells, attention)
        if self.weights["channel"]:
            losses["channel"] = channel_term(moments, config.channel_criterion)
        if self.spatial_adapter is not None:
            losses["spatial"] = spatial_term(moments, self.spatial_adapter, config.spatial_criterion)
        if self.weights["affinity"] and self.affinity != "none":
            losses["affinity"] = self._affinity(view, cells, attention)
        return {name: value * self.weights[name] for name, value in losses.items()}

    def _cells(self, answers: Answers, inside: Region | None) -> CellWeights:
        ratio = self.weights["background"] / self.weights["foreground"] if self.weights["foreground"] else 0.0
        occupied = None
        if self.weights["non_empty"]:
            occupied = fit(answers.teachers[self.cache].canvas_mask.float(), self.grid.shape) > 0
        return weigh_cells(self.config, answers.boxes, self.grid, self._answered(answers), occupied, ratio, inside)

    def _answered(self, answers: Answers) -> Region | None:
        if self.false_positives == "none" or answers.epoch < self.config.fp_epoch:
            return None
        teacher = answers.teacher_strongest(self.cache)
        shape = (teacher.shape[1], teacher.shape[2])
        mistaken = false_positives(
            self.false_positives,
            teacher,
            fit(answers.student_strongest, shape),
            fit(answers.truth, shape),
            self.config.threshold,
            self.config.gt_threshold,
        )
        return fit(mistaken.float(), self.grid.shape) > 0

    def _by_region(self, moments: Moments, cells: CellWeights, attention: Map) -> dict[str, Tensor]:
        # As published, the channel attention weighs false positives and non-empty ground whether or not it weighs
        # the rest.
        error = moments.weighted_error if self.config.channel_attention else moments.error
        losses = {
            "foreground": masked_sum(error, cells.foreground * attention),
            "background": masked_sum(error, cells.background * attention),
        }
        if cells.false_positive is not None:
            losses["false_positive"] = masked_sum(moments.weighted_error, cells.false_positive * attention)
        if cells.non_empty is not None:
            losses["non_empty"] = masked_sum(moments.weighted_error, cells.non_empty * attention)
        return losses

    def _affinity(self, view: PairView, cells: CellWeights, attention: Map) -> Tensor:
        config = self.config
        if self.affinity == "attention":
            selected = attended_cells(attention, config.affinity_top_k, config.affinity_threshold)
        else:
            selected = cells.objects | cells.mistaken if self.affinity == "foreground+fp" else cells.objects
        student = full(view.adapted)
        teacher = decoded(view.teacher, student.dtype)
        return selected_affinity(student, teacher, selected, config.affinity_criterion, config.affinity_split)
