"""The terms of the distillation objective, one file each: configuration, module and maths."""

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import nn

from student.distill.terms.affinity import AffinityLoss, AffinityTerm
from student.distill.terms.all import AllLoss, AllTerm
from student.distill.terms.attention_transfer import AttentionTransferLoss, AttentionTransferTerm
from student.distill.terms.base import TermConfig
from student.distill.terms.bevdistill_feature import BevdistillFeatureLoss, BevdistillFeatureTerm
from student.distill.terms.box_response import BoxResponseLoss, BoxResponseTerm
from student.distill.terms.cross_head import CrossHeadLoss, CrossHeadTerm
from student.distill.terms.fgd import FgdLoss, FgdTerm
from student.distill.terms.fitnet import FitnetLoss, FitnetTerm
from student.distill.terms.foreground_background import ForegroundBackgroundLoss, ForegroundBackgroundTerm
from student.distill.terms.gauss_focal import GaussFocalLoss, GaussFocalTerm
from student.distill.terms.heatmap_temperature import HeatmapTemperatureLoss, HeatmapTemperatureTerm
from student.distill.terms.linfengzhang import LinfengzhangLoss, LinfengzhangTerm
from student.distill.terms.non_local import NonLocalLoss, NonLocalTerm
from student.distill.terms.s2m2_feature import S2m2FeatureLoss, S2m2FeatureTerm
from student.distill.terms.s2m2_heatmap import S2m2HeatmapLoss, S2m2HeatmapTerm
from student.distill.terms.tigbev_depth import TigbevDepthLoss, TigbevDepthTerm
from student.distill.terms.tigbev_features import TigbevFeaturesLoss, TigbevFeaturesTerm
from student.distill.terms.unidistill_points import UnidistillPointsLoss, UnidistillPointsTerm

TERMS: dict[str, tuple[type[TermConfig], Callable[..., nn.Module]]] = {
    "all": (AllTerm, AllLoss),
    "fitnet": (FitnetTerm, FitnetLoss),
    "attention_transfer": (AttentionTransferTerm, AttentionTransferLoss),
    "foreground_background": (ForegroundBackgroundTerm, ForegroundBackgroundLoss),
    "linfengzhang": (LinfengzhangTerm, LinfengzhangLoss),
    "s2m2_ssd_feature": (S2m2FeatureTerm, S2m2FeatureLoss),
    "non_local": (NonLocalTerm, NonLocalLoss),
    "affinity": (AffinityTerm, AffinityLoss),
    "fgd": (FgdTerm, FgdLoss),
    "unidistill_points": (UnidistillPointsTerm, UnidistillPointsLoss),
    "tigbev_features": (TigbevFeaturesTerm, TigbevFeaturesLoss),
    "bevdistill_feature": (BevdistillFeatureTerm, BevdistillFeatureLoss),
    "cross_head": (CrossHeadTerm, CrossHeadLoss),
    "s2m2_ssd_heatmap": (S2m2HeatmapTerm, S2m2HeatmapLoss),
    "gauss_focal_heatmap": (GaussFocalTerm, GaussFocalLoss),
    "heatmap_temperature": (HeatmapTemperatureTerm, HeatmapTemperatureLoss),
    "box_response": (BoxResponseTerm, BoxResponseLoss),
    "tigbev_depth": (TigbevDepthTerm, TigbevDepthLoss),
}
"""Kind -> configuration, and the module that computes it: of a `PairTerm` (config, index, pair), one for each of its
pairs; of any other (config)."""

if TYPE_CHECKING:
    Term = TermConfig
else:
    Term = Annotated[reduce(or_, (config for config, _ in TERMS.values())), Field(discriminator="kind")]
