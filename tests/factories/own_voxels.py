"""A LiDAR detector as BEVFusion's of mmdet3d's projects: it voxelises points itself, and its maps' rows run along x.

tests/data/teachers/own_voxels.py imports it, as the configurations of projects import theirs.
"""

import torch
from mmcv.ops import Voxelization
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


class AlongX(Voxelization):
    """Voxels numbered (x, y, z)."""

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        voxels, coordinates, counts = super().forward(points)
        return voxels, coordinates.flip(1), counts


@MODELS.register_module()
class ScatterAlongX(BaseModule):
    """Features (V, C) of voxels -> (B, C, X, Y), their sums over z."""

    def __init__(self, in_channels: int, channels: int, cells: list[int]) -> None:
        super().__init__()
        self.cells, self.linear = cells, nn.Linear(in_channels, channels)

    def forward(self, features: Tensor, coors: Tensor, batch_size: int) -> Tensor:
        canvas = features.new_zeros(batch_size, *self.cells, self.linear.out_features)
        frame, x, y, _ = coors.long().unbind(1)
        canvas.index_put_((frame, x, y), self.linear(features).relu(), accumulate=True)
        return canvas.movedim(-1, 1).contiguous()


@MODELS.register_module()
class Proposals(BaseModule):
    """Stands for TransFusion's head, of which a dump takes the weights alone."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.shared_conv = nn.Conv2d(in_channels, 8, 3, padding=1)


@MODELS.register_module()
class OwnVoxels(Base3DDetector):
    """The parts' names and the calls are BEVFusion's."""

    def __init__(
        self, data_preprocessor, pts_middle_encoder, pts_backbone, pts_neck, bbox_head, img_backbone=None, **parts
    ) -> None:
        layer = data_preprocessor.pop("voxelize_cfg")
        super().__init__(data_preprocessor=data_preprocessor)
        self.numbered_by = layer.pop("numbered_by", "xyz")
        self.pts_voxel_layer = AlongX(**layer) if self.numbered_by == "xyz" else Strange(**layer)
        self.img_backbone = None if img_backbone is None else MODELS.build(img_backbone)
        for name, part in parts.items():
            setattr(self, name, MODELS.build(part))
        self.pts_middle_encoder = MODELS.build(pts_middle_encoder)
        self.pts_backbone, self.pts_neck = MODELS.build(pts_backbone), MODELS.build(pts_neck)
        self.bbox_head = MODELS.build(bbox_head)

    def extract_feat(self, inputs: dict, metas: list[dict]) -> list[Tensor]:
        features, coors = [], []
        for frame, points in enumerate(inputs["points"]):
            voxels, coordinates, counts = self.pts_voxel_layer(points)
            features.append(voxels.sum(dim=1) / counts[:, None])
            coors.append(nn.functional.pad(coordinates, (1, 0), value=frame))
        canvas = self.pts_middle_encoder(torch.cat(features), torch.cat(coors), len(features))
        return self.pts_neck(self.pts_backbone(canvas))

    def loss(self, *_):
        raise AssertionError

    predict = _forward = loss


class Strange(Voxelization):
    """Voxels numbered (z, x, y)."""

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        voxels, coordinates, counts = super().forward(points)
        return voxels, coordinates[:, [0, 2, 1]], counts
