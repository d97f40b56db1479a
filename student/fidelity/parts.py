"""What judges a warped teacher beside its features: the teacher's own head, and the distillation of a stand-in."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.errors import MismatchError, TeacherError
from cache.spec import CacheSpec
from cache.store.reader import TeacherBatch, TeacherCache
from cache.teacher.base import TeacherOutput
from student.config.student import HeadConfig
from student.distill.adapters import FeatureLayer
from student.distill.config import DistillConfig
from student.distill.objective import DistillObjective
from student.distill.predictions import TeacherMaps, Teaching
from student.distill.regions import CLIP
from student.evaluation.teacher_boxes import moved_back
from student.fidelity.closeness import Closeness, closeness
from student.models.center_head import CenterHead
from student.models.decoding import Detections, decode

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


class TeacherHead:
    """The teacher's head, from the weights that lie beside the store.

    Raises:
        MismatchError: the store lacks the layer `head`, or its head is not built as mmdet3d's CenterHead is by default.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self.spec = cache.spec
        weights = cache.head_weights()
        channels = cache.spec.layer("head").channels
        shared = weights["shared_conv.conv.weight"].shape[0] if "shared_conv.conv.weight" in weights else 1
        self.network = CenterHead(channels, HeadConfig(tasks=cache.spec.teacher.tasks, shared_channels=shared))
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            raise MismatchError(
                "the teacher's head cannot be rebuilt from its weights",
                where=cache.path,
                got=str(error).splitlines()[1].strip(),
                expected="a CenterHead of 3 x 3 convolutions, two for each map",
            ) from error
        self.network.eval().requires_grad_(False)

    def detect(self, features: Float[Tensor, "1 C H W"], matrix: Float[np.ndarray, "4 4"]) -> Detections:
        """The boxes in features that were seen under a BEV matrix, brought back to the LiDAR frame."""
        teacher = self.spec.teacher
        logits, head_maps = self.network.to(features.device)(features)
        (found,) = decode(logits.sigmoid(), head_maps, self.spec.heatmap_grid, teacher.tasks, teacher.decoding)
        return moved_back(found, matrix)

    def require_same(self, live: TeacherOutput) -> None:
        """Insist that this head makes of the live features what the teacher's own does.

        Raises:
            TeacherError: it makes another heatmap of them.
        """
        logits, _ = self.network.to(live.heatmap.device)(live.layers["head"])
        difference = (logits.sigmoid() - live.heatmap).abs().max().item()
        if difference > 1e-3:
            raise TeacherError(
                "the head that lies beside the store does not repeat the teacher's heatmap",
                got=f"a difference of {difference:.3g}",
                cure="Use a teacher whose head is mmdet3d's CenterHead with its defaults",
            )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a stand-in student pays for differing from the cached and from the live teacher.

    gradient: of the first loss against that of the second, in the cells that the cache knows.
    """

    cached: float
    live: float
    gradient: Closeness


class StandIn:
    """A student made of the live features turned by 180 degrees: as large as the teacher's, in the wrong places."""

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
        way: Float[Tensor, "1 4 4"] | None,
    ) -> Loss:
        """The paper's term with either teacher.

        Args:
            boxes: in the frame of the live teacher's points.
            way: from there to the cached view; None where they are the same.
        """
        cached_loss, found = self._gradient(cached, live, boxes, labels, way)
        layers = {name: features.clone() for name, features in live.layers.items()}  # made in inference mode
        teaching = TeacherMaps(features=layers, heatmap=live.heatmap, canvas_mask=live.canvas_mask)
        live_loss, reference = self._gradient(teaching, live, boxes, labels, None)
        known = (found != 0).any(dim=1)
        return Loss(cached=cached_loss, live=live_loss, gradient=closeness(found, reference, known))

    def _gradient(
        self,
        teaching: Teaching,
        live: TeacherOutput,
        boxes: Float[Tensor, "M 9"],
        labels: Int[Tensor, "M"],
        way: Float[Tensor, "1 4 4"] | None,
    ) -> tuple[float, Float[Tensor, "1 C H W"]]:
        student = live.layers["head"].flip(-1, -2).requires_grad_()
        logits = live.heatmap.flip(-1, -2).clamp(CLIP, 1 - CLIP).logit()
        objective = self.objective.to(student.device)
        terms = objective({"head": student}, logits, teaching, (boxes,), (labels.to(boxes.device),), 0, [way])
        loss = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        return loss.item(), gradient
