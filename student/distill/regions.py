"""Heatmap regions (true and false positives and negatives) and their scales."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from cache.errors import ConfigError
from student.distill.masks import region_share

FalsePositives = Literal["none", "teacher", "student", "teacher_selected_student", "teacher+teacher_selected_student"]
RegionScale = Literal["average", "region"]
Map = Float[Tensor, "B H W"]
Region = Bool[Tensor, "B H W"]

CLIP = 1e-4
"""Probabilities are clamped to CLIP .. 1 - CLIP, as in CenterPoint."""


@dataclass(frozen=True, kw_only=True)
class Regions:
    """BEV cells by prediction and ground truth."""

    true_positive: Region
    false_positive: Region
    false_negative: Region
    true_negative: Region


def region_decomposition(
    predicted: Float[Tensor, "B *K H W"],
    truth: Float[Tensor, "B *L H W"],
    threshold: float = 0.1,
    truth_threshold: float | None = None,
) -> Regions:
    """Classify the cells of heatmaps as TP, FP, FN or TN (S2M2-SSD and DistillBEV; docs/objective.md, equation 13).

    A cell is predicted where its largest class is above `threshold`, and true where the ground truth's is above
    `truth_threshold` (default: the same). Values equal to a threshold are not above it.

    Args:
        predicted, truth: probabilities, (B, K, H, W) or (B, H, W), over the same grid.
    """
    truth_threshold = threshold if truth_threshold is None else truth_threshold
    positive, true = max_over_classes(predicted) > threshold, max_over_classes(truth) > truth_threshold
    return Regions(
        true_positive=positive & true,
        false_positive=positive & ~true,
        false_negative=~positive & true,
        true_negative=~positive & ~true,
    )


def max_over_classes(heatmap: Shaped[Tensor, "B *K H W"]) -> Shaped[Tensor, "B H W"]:
    """The largest probability of any class, without gradient."""
    heatmap = heatmap.detach()
    return heatmap if heatmap.dim() == 3 else heatmap.amax(dim=1)


def false_positives(
    kind: FalsePositives, teacher: Map, student: Map, truth: Map, threshold: float, gt_threshold: float | None = None
) -> Region:
    """Cells without an object where a network predicts one (docs/objective.md, equation 2).

    Args:
        teacher, student, truth: each cell's largest probability of any class.
        gt_threshold: below it there is no object (and, in `teacher_selected_student`, the teacher predicts none);
            default: `threshold`.
    """
    low = threshold if gt_threshold is None else gt_threshold
    of_teacher, of_student = teacher > threshold, student > threshold
    match kind:
        case "none":
            predicted = torch.zeros_like(of_teacher)
        case "teacher":
            predicted = of_teacher
        case "student":
            predicted = of_student
        case "teacher_selected_student":
            predicted = of_student & (teacher < low)
        case "teacher+teacher_selected_student":
            predicted = of_teacher | (of_student & (teacher < low))
    return predicted & (truth < low)


def region_scale(kind: RegionScale, region: Region) -> Map:
    """1 / the number of the region's cells: in the sample (`average`), or in a 4-connected component (`region`).

    Components are found by scipy on the CPU, which waits for a device.
    """
    if kind == "average":
        return region_share(region)
    # The structure does not extend along the first axis: one call labels all samples and joins none.
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(region.cpu().numpy(), structure=flat)
    sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(np.float32)
    share = np.divide(1, sizes, out=np.zeros_like(sizes), where=np.arange(count + 1) > 0)
    return torch.from_numpy(share[labels]).to(region.device)


def mean_within(error: Map, region: Region, channels: int = 1) -> Float[Tensor, ""]:
    """Mean of the error over a region in each sample, then over the samples that have such cells (S2M2-SSD)."""
    cells = region.sum(dim=(1, 2))
    means = (error * region).sum(dim=(1, 2)) / (cells.clamp(min=1) * channels)
    return means.sum() / (cells > 0).sum().clamp(min=1)


def resize_map(values: Float[Tensor, "B *K _ _"], shape: tuple[int, int]) -> Float[Tensor, "B *K _ _"]:
    """A map resized to H x W cells of the same range: the maximum where cells merge, repetition where they split.

    Raises:
        ConfigError: the numbers of cells are no multiples of each other.
    """
    (h, w), (height, width) = values.shape[-2:], shape
    require_multiple((h, w), shape, "a map")
    if h < height:
        return values.repeat_interleave(height // h, dim=-2).repeat_interleave(width // w, dim=-1)
    return values if (h, w) == shape else F.max_pool2d(values, (h // height, w // width))


def require_multiple(cells: tuple[int, int], shape: tuple[int, int], where: str) -> None:
    """Raise unless cells merge or split into whole numbers of cells.

    Raises:
        ConfigError: they do not.
    """
    (h, w), (height, width) = cells, shape
    if (h % height == 0 and w % width == 0) or (height % h == 0 and width % w == 0):
        return
    raise ConfigError(
        "the cells of a map do not merge or split into the cells of another",
        where=where,
        got=f"{h} x {w} cells",
        expected=f"{height} x {width} cells, or a whole multiple or fraction",
        cure="Choose layers and adapters whose cells are whole multiples of the heatmaps' and the canvas's",
    )
