"""The teacher's own head, applied to cached or live features."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cache.errors import MismatchError, TeacherError
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherOutput
from cache.teacher.state_dict import load_state_dict
from student.config.student import HeadConfig
from student.evaluation.teacher_boxes import to_lidar_frame
from student.models.center_head import CenterHead
from student.models.decoding import Detections, decode


class TeacherHead:
    """The teacher's head, rebuilt from the weights stored beside the arrays.

    Raises:
        MismatchError: the store lacks the layer `head`, or its head is not built as mmdet3d's CenterHead is by default.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self.spec = cache.spec
        weights = cache.head_weights()
        channels = cache.spec.layer("head").channels
        shared = weights["shared_conv.conv.weight"].shape[0] if "shared_conv.conv.weight" in weights else 1
        self.network = CenterHead(channels, HeadConfig(tasks=cache.spec.teacher.tasks, shared_channels=shared))
        if match := load_state_dict(self.network, weights):
            raise MismatchError(
                "the teacher's head cannot be rebuilt from its weights",
                where=cache.path,
                got=match,
                expected="a CenterHead of 3 x 3 convolutions, two for each map",
                cure="Compare a teacher whose head is mmdet3d's CenterHead with its defaults",
            )
        self.network.eval().requires_grad_(False)

    def detect(self, features: Float[Tensor, "1 C H W"], matrix: Float[np.ndarray, "4 4"]) -> Detections:
        """Detections from features computed under a BEV matrix, in the LiDAR frame."""
        teacher = self.spec.teacher
        logits, head_maps = self.network.to(features.device)(features)
        (found,) = decode(logits.sigmoid(), head_maps, self.spec.heatmap_grid, teacher.tasks, teacher.decoding)
        return to_lidar_frame(found, matrix)

    def require_same(self, live: TeacherOutput) -> None:
        """Check that this head reproduces the teacher's own heatmap from the live features.

        Raises:
            TeacherError: the heatmaps differ.
        """
        logits, _ = self.network.to(live.probability.device)(live.layers["head"])
        difference = (logits.sigmoid() - live.probability).abs().max().item()
        if difference > 1e-3:
            raise TeacherError(
                "the head that lies beside the store does not repeat the teacher's heatmap",
                got=f"a difference of {difference:.3g}",
                cure="Use a teacher whose head is mmdet3d's CenterHead with its defaults",
            )
