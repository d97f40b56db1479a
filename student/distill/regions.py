"""Regions of the heatmaps: true and false positives and negatives, and how they are scaled."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from cache.errors import ConfigError
from student.distill.masks import region_share
from student.distill.term_configs import FalsePositives, RegionScale

Map = Float[Tensor, "B H W"]
Region = Bool[Tensor, "B H W"]

CLIP = 1e-4
"""Probabilities stay this far from 0 and 1, as in CenterPoint."""


@dataclass(frozen=True, kw_only=True)
class Regions:
    """The cells of a BEV grid by what was predicted and what is there."""

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
    """Sort the cells of heatmaps into TP, FP, FN and TN (S2M2-SSD and DistillBEV; docs/objective.md, equation 13).

    A cell is predicted where the largest class is above `threshold`; it is true where the ground truth's largest class
    is above `truth_threshold` (left out: the same), false where it is below. Cells that equal a threshold count as not
    predicted and as not true.

    Args:
        predicted, truth: probabilities, (B, K, H, W) or (B, H, W), over the same grid.
    """
    truth_threshold = threshold if truth_threshold is None else truth_threshold
    seen, there = strongest(predicted) > threshold, strongest(truth) > truth_threshold
    return Regions(
        true_positive=seen & there,
        false_positive=seen & ~there,
        false_negative=~seen & there,
        true_negative=~seen & ~there,
    )


def strongest(heatmap: Shaped[Tensor, "B *K H W"]) -> Shaped[Tensor, "B H W"]:
    """The largest probability of any class, without gradient."""
    heatmap = heatmap.detach()
    return heatmap if heatmap.dim() == 3 else heatmap.amax(dim=1)


def false_positives(
    kind: FalsePositives, teacher: Map, student: Map, truth: Map, threshold: float, gt_threshold: float | None = None
) -> Region:
    """Cells without an object that a network takes for one (docs/objective.md, equation 2).

    Args:
        teacher, student, truth: the strongest class's probability in each cell.
        gt_threshold: below it there is no object (and, in `teacher_selected_student`, none for the teacher); left out,
            it is `threshold`.
    """
    low = threshold if gt_threshold is None else gt_threshold
    empty = truth < low
    of_teacher = empty & (teacher > threshold)
    of_student = empty & (student > threshold)
    match kind:
        case "none":
            return torch.zeros_like(empty)
        case "teacher":
            return of_teacher
        case "student":
            return of_student
        case "teacher_selected_student":
            return of_student & (teacher < low)
        case "teacher+teacher_selected_student":
            return of_teacher | (of_student & (teacher < low))


def region_scale(kind: RegionScale, region: Region) -> Map:
    """1 / the size of the region a cell is in: all of the sample's cells (`average`), or its 4-connected component
    (`region`; found by scipy on the CPU, so a device waits here)."""
    if kind == "average":
        return region_share(region)
    # The structure does not reach into the first axis, so one call labels all samples and joins none.
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(region.cpu().numpy(), structure=flat)
    sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(np.float32)
    share = np.divide(1, sizes, out=np.zeros_like(sizes), where=np.arange(count + 1) > 0)
    return torch.from_numpy(share[labels]).to(region.device)


def fit(heatmap: Float[Tensor, "B *K _ _"], shape: tuple[int, int]) -> Float[Tensor, "B *K _ _"]:
    """A map on a grid of the same range with `shape` cells: the largest where cells merge, repeated where they split.

    Raises:
        ConfigError: the numbers of cells are no multiples of each other.
    """
    (h, w), (height, width) = heatmap.shape[-2:], shape
    require_fit((h, w), shape, "a map")
    if h < height:
        return heatmap.repeat_interleave(height // h, dim=-2).repeat_interleave(width // w, dim=-1)
    return heatmap if (h, w) == shape else F.max_pool2d(heatmap, (h // height, w // width))


def require_fit(cells: tuple[int, int], shape: tuple[int, int], where: str) -> None:
    """Insist that cells merge or split into whole numbers of cells.

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
