"""The teacher's own head, applied to cached or live features."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cache.errors import TeacherError
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherOutput
from student.evaluation.teacher_boxes import to_lidar_frame
from student.models.decoding import Detections, decode
from student.models.teacher_head import build_teacher_head


class TeacherHead:
    """The teacher's head, rebuilt from the weights stored beside the arrays.

    Raises:
        MismatchError: the store lacks the layer `head`, or its head is not built as mmdet3d's CenterHead is by default.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self.spec, self.network = cache.spec, build_teacher_head(cache)

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
