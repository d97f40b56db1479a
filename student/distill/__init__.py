"""Distillation of a BEV detector from a teacher's cached features and heatmaps; see docs/your-student.md.

The public API for trainers of any kind: it needs torch and pydantic, and neither mmdet3d nor Lightning.
"""

from student.distill.adapters import FeatureLayer
from student.distill.attention import spatial_attention
from student.distill.boxes import pad_boxes
from student.distill.config import DistillConfig
from student.distill.gaussians import draw_heatmaps
from student.distill.inherit import inherit_head
from student.distill.objective import DistillObjective
from student.distill.predictions import StudentDepth, TeacherMaps
from student.distill.regions import region_decomposition
from student.distill.warp import to_teacher

__all__ = [
    "DistillConfig",
    "DistillObjective",
    "FeatureLayer",
    "StudentDepth",
    "TeacherMaps",
    "draw_heatmaps",
    "inherit_head",
    "pad_boxes",
    "region_decomposition",
    "spatial_attention",
    "to_teacher",
]
