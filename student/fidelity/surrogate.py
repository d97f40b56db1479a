"""The paper's distillation term for a surrogate student: the same loss with the cached and with the live teacher."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.spec import CacheSpec
from cache.store.reader import TeacherBatch
from cache.teacher.base import TeacherOutput
from student.distill.adapters import FeatureLayer
from student.distill.config import DistillConfig
from student.distill.objective import DistillObjective
from student.distill.predictions import TeacherInput, TeacherMaps
from student.distill.regions import CLIP
from student.fidelity.similarity import Similarity, similarity

RECIPE = {
    "pairs": [{"student": "head", "teacher": "head"}],
    "terms": [
        {
            "kind": "fgd",
            "fg_weight": 6.0e-3,
            "bg_weight": 4.0e-2,
            "spatial_weight": 2.5e-3,
            "spatial_attention": "teacher_student",
            "channel_attention": False,
            "false_positives": "teacher",
            "fp_weight": 6.0e-2,
        }
    ],
}
"""The paper's term on the head pair, without an adapter."""


@dataclass(frozen=True, kw_only=True)
class LossComparison:
    """The distillation loss of a student with the cached and with the live teacher.

    gradient: of the first loss against that of the second, over the valid cells of the cache.
    """

    cached: float
    live: float
    gradient: Similarity


class SurrogateStudent:
    """A student whose features are the live ones rotated by 180 degrees: right magnitude, wrong places."""

    def __init__(self, spec: CacheSpec) -> None:
        layer = spec.layer("head")
        student = {"head": FeatureLayer(channels=layer.channels, grid=layer.grid)}
        config = DistillConfig.parse(RECIPE, "the paper's recipe")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.objective = DistillObjective(config, student, spec.heatmap_grid, spec.teacher.tasks, [spec])

    def loss(
        self,
        cached: TeacherBatch,
        live: TeacherOutput,
        boxes: Float[Tensor, "M 9"],
        labels: Int[Tensor, "M"],
        to_cached: Float[Tensor, "1 4 4"] | None,
    ) -> LossComparison:
        """The paper's term with either teacher.

        Args:
            boxes: in the frame of the live teacher's points.
            to_cached: from that frame to the cached view's; None where they are the same.
        """
        cached_loss, found = self._gradient(cached, live, boxes, labels, to_cached)
        layers = {name: features.clone() for name, features in live.layers.items()}  # made in inference mode
        teaching = TeacherMaps(features=layers, heatmap=live.heatmap, canvas_mask=live.canvas_mask)
        live_loss, reference = self._gradient(teaching, live, boxes, labels, None)
        known = (found != 0).any(dim=1)
        return LossComparison(cached=cached_loss, live=live_loss, gradient=similarity(found, reference, known))

    def _gradient(
        self,
        teaching: TeacherInput,
        live: TeacherOutput,
        boxes: Float[Tensor, "M 9"],
        labels: Int[Tensor, "M"],
        to_cached: Float[Tensor, "1 4 4"] | None,
    ) -> tuple[float, Float[Tensor, "1 C H W"]]:
        student = live.layers["head"].flip(-1, -2).requires_grad_()
        logits = live.heatmap.flip(-1, -2).clamp(CLIP, 1 - CLIP).logit()
        objective = self.objective.to(student.device)
        terms = objective({"head": student}, logits, teaching, (boxes,), (labels.to(boxes.device),), 0, [to_cached])
        loss = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        return loss.item(), gradient
