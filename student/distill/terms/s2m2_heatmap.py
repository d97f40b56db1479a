"""`s2m2_ssd_heatmap` (docs/objective.md, equation 18; S2M2-SSD, CVPR 2022)."""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from student.distill.criteria import CRITERIA, Criterion
from student.distill.feature_stats import mask_cells
from student.distill.predictions import BatchPredictions
from student.distill.regions import Regions, mean_within, region_decomposition
from student.distill.terms.base import HeatmapLoss, HeatmapTerm, Losses, Probability, Scalar, Weight


class S2m2HeatmapTerm(HeatmapTerm):
    """`s2m2_ssd_heatmap`: the heatmaps' difference where the student's is right (TP) and wrong (FP and FN)."""

    kind: Literal["s2m2_ssd_heatmap"]
    criterion: Criterion = "mse"
    threshold: Probability = 0.1
    tp_weight: Weight = 1.0
    fpfn_weight: Weight = 1.0


class S2m2HeatmapLoss(HeatmapLoss[S2m2HeatmapTerm]):
    """`s2m2_ssd_heatmap` on a batch."""

    def forward(self, predictions: BatchPredictions) -> Losses:
        config, cache = self.config, self.config.cache
        regions = region_decomposition(predictions.student_max, predictions.truth_max, config.threshold)
        right, wrong = s2m2_heatmap(
            predictions.student_probability,
            predictions.teacher_probability(cache),
            regions,
            config.criterion,
            predictions.teachers[cache].valid_mask,
        )
        return {"tp": config.tp_weight * right, "fpfn": config.fpfn_weight * wrong}


def s2m2_heatmap(
    student: Float[Tensor, "B K H W"],
    teacher: Float[Tensor, "B K H W"],
    regions: Regions,
    criterion: Criterion,
    valid_mask: Bool[Tensor, "B H W"] | None = None,
) -> tuple[Scalar, Scalar]:
    """Difference of the largest probabilities of any class, over TP, and over FP and FN.

    Both sides are masked in both regions; the public code leaves the teacher unmasked in the second.
    """
    error = CRITERIA[criterion](student.amax(dim=1) - teacher.amax(dim=1))
    parts = regions.true_positive, regions.false_positive | regions.false_negative
    right, wrong = (mean_within(error, mask_cells(part, valid_mask)) for part in parts)
    return right, wrong
