from typing import Any

import pytest

from student.config.student import TASKS
from student.distill.head_maps import HEAD_MAPS


@pytest.fixture(scope="session")
def build_theirs() -> Any:
    """A builder of mmdet3d's CenterHead over the same grid."""
    heads = pytest.importorskip("mmdet3d.models.dense_heads")
    registry = pytest.importorskip("mmengine.registry")
    registry.init_default_scope("mmdet3d")

    def build(nms_type: str = "circle") -> Any:
        geometry = {"pc_range": [-8.0, -4.0], "out_size_factor": 4, "voxel_size": [0.125, 0.125]}
        limits = [-7.0, -61.2, -10.0, 61.2, 61.2, 10.0]
        coder = {"type": "CenterPointBBoxCoder", **geometry, "code_size": 9, "max_num": 200, "score_threshold": 0.1}
        return heads.CenterHead(
            in_channels=24,
            tasks=[{"num_class": len(task), "class_names": list(task)} for task in TASKS],
            common_heads={name: (width, 2) for name, width in HEAD_MAPS.items()},
            share_conv_channel=8,
            bbox_coder={**coder, "post_center_range": limits},
            separate_head={"type": "SeparateHead", "head_conv": 8, "init_bias": -2.19, "final_kernel": 3},
            test_cfg={
                **geometry,
                "post_center_limit_range": limits,
                "min_radius": [4, 12, 10, 1, 0.85, 0.175],
                "score_threshold": 0.1,
                "nms_type": nms_type,
                "pre_max_size": 150,
                "post_max_size": 83,
                "nms_thr": 0.2,
            },
        ).eval()

    return build
