"""`s2m2_ssd_feature` (docs/objective.md, equation 13; S2M2-SSD, CVPR 2022)."""

from typing import Literal

from student.distill.criteria import Criterion
from student.distill.feature_stats import mask_cells
from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.regions import mean_within, region_decomposition, resize_map
from student.distill.terms.base import Losses, PairLoss, PairTerm, Probability, Weights


class S2m2FeatureTerm(PairTerm):
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


class S2m2FeatureLoss(PairLoss[S2m2FeatureTerm]):
    """`s2m2_ssd_feature` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        stats = features.stats(self.config.criterion)
        student, truth = (resize_map(m, self.grid.shape) for m in (predictions.student_max, predictions.truth_max))
        regions = region_decomposition(student, truth, self.config.threshold)
        parts = {"tp": regions.true_positive, "fp": regions.false_positive, "fn": regions.false_negative}
        if self.config.mode == "old":
            parts = {"tp": regions.true_positive, "fpfn": regions.false_positive | regions.false_negative}
        return {
            name: self.weight(f"{name}_weight")
            * mean_within(stats.error, mask_cells(region, features.valid_mask), stats.channels)
            for name, region in parts.items()
        }
