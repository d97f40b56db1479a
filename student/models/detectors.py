"""The detectors BEVDet, BEVDet4D, BEVDepth and BEVDepth4D, and their losses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from student.config.student import DetectorConfig
from student.data.batch import Batch
from student.models.bev_encoder import BevResNet, FpnLss, align
from student.models.center_head import CenterHead
from student.models.center_targets import boxes_loss, head_targets, heatmap_loss
from student.models.decoding import Detections, decode
from student.models.depth_net import DeformableDepthNet, DepthNet, PlainDepthNet, depth_loss
from student.models.image_encoder import ImageEncoder
from student.models.lift_splat import Cameras, LiftSplat


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """Predictions of a student for B samples.

    features: maps by layer name, as in DistillBEV: `backbone0..2` (H/2, H/4, H/8), `head` (the neck's output, H x W).
    heatmap: logits of all classes, in the order of the tasks.
    head_maps: the head's other maps, one row for each of T tasks; names and layout as in the teacher's.
    depth: logits of the current images' depth bins; None without depth supervision.
    """

    features: dict[str, Float[Tensor, "B _ _ _"]]
    heatmap: Float[Tensor, "B K H W"]
    head_maps: dict[str, Float[Tensor, "B T _ H W"]]
    depth: Float[Tensor, "B N D h w"] | None


class BevDetector(nn.Module):
    """Multi-camera images of one or several times -> centre head predictions.

    Args:
        config: sizes and losses.
        depth_net: (image features, camera parameters) -> depth logits and context.
        supervise_depth: whether the depth logits are trained with LiDAR depth.
    """

    def __init__(self, config: DetectorConfig, depth_net: nn.Module, supervise_depth: bool) -> None:
        super().__init__()
        self.config, self.times, self.supervise_depth = config, config.times, supervise_depth
        lifted = config.lift_channels
        self.image_encoder = ImageEncoder(config.image_backbone, config.image_neck_channels, config.image_stride)
        self.lift = LiftSplat(config, depth_net)
        # The 4D models refine each time's map before they are concatenated (BEVDet4D, section 3.2).
        self.pre_process = BevResNet(lifted, (lifted,), strides=(1,)) if self.times > 1 else None
        self.bev_backbone = BevResNet(lifted * self.times, config.bev_channels, strides=(2, 2, 2))
        self.bev_neck = FpnLss(config.bev_channels[0] + config.bev_channels[-1], config.bev_neck_channels)
        self.head = CenterHead(config.bev_neck_channels, config.head)

    def forward(self, batch: Batch) -> StudentOutput:
        bev, depth = self._bev(batch, time=0)
        bev = torch.cat([bev, *(self._previous_bev(batch, time) for time in range(1, self.times))], dim=1)
        maps = self.bev_backbone(bev)
        neck = self.bev_neck(maps)
        heatmap, head_maps = self.head(neck)
        features = {f"backbone{stage}": stage_map for stage, stage_map in enumerate(maps)} | {"head": neck}
        return StudentOutput(
            features=features, heatmap=heatmap, head_maps=head_maps, depth=depth if self.supervise_depth else None
        )

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms of the detection loss; a student without a teacher minimises their sum.

        Heatmap and boxes are those of samples with labels.
        """
        config, head = self.config, self.config.head
        targets = head_targets(batch.boxes, batch.labels, config.grid, head)
        heatmaps, chosen = (output.heatmap, targets.heatmap), batch.labelled_samples()
        if chosen is not None:
            index = torch.tensor(chosen, dtype=torch.long).to(output.heatmap.device, non_blocking=True)
            heatmaps = (output.heatmap[index], targets.heatmap[index])
        terms = {
            "heatmap": head.heatmap_weight * heatmap_loss(*heatmaps, head.tasks),
            "boxes": head.boxes_weight * boxes_loss(output.head_maps, targets, head.code_weights),
        }
        if output.depth is not None:
            terms["depth"] = config.depth_weight * depth_loss(output.depth, batch.require_depth_m(), config.depth_m)
        return terms

    def detect(self, output: StudentOutput) -> list[Detections]:
        """The boxes of each sample, in the batch's (augmented) BEV frame."""
        head = self.config.head
        return decode(output.heatmap.float().sigmoid(), output.head_maps, self.config.grid, head.tasks, head.decoding)

    def _bev(self, batch: Batch, time: int) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B N D h w"]]:
        """One time's map, in the BEV frame of its own LiDAR, and its depth logits."""
        images = batch.images[:, time]
        features = self.image_encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        cameras = Cameras(
            intrinsics=batch.intrinsics[:, time],
            image_matrix=batch.image_matrix[:, time],
            camera_to_lidar=batch.camera_to_lidar[:, time],
            bev_matrix=batch.bev_matrix,
        )
        bev, depth = self.lift(features, cameras)
        return bev if self.pre_process is None else self.pre_process(bev)[0], depth

    @torch.no_grad()
    def _previous_bev(self, batch: Batch, time: int) -> Float[Tensor, "B C H W"]:
        """An earlier time's map in the current frame; no gradient flows into the past, as in the public code."""
        bev, _ = self._bev(batch, time)
        return align(bev, self.config.grid, batch.to_current[:, time], batch.bev_matrix)


def build_detector(config: DetectorConfig) -> BevDetector:
    """Build the detector of a configuration, with random weights.

    BEVDet and BEVDet4D: Huang et al. 2021, Huang and Huang 2022; BEVDepth and BEVDepth4D: Li et al. 2022. The 4D
    models differ by `config.times`.

    Raises:
        ConfigError: an unknown backbone or class.
    """
    sizes = (config.image_neck_channels, config.depth_bins, config.lift_channels)
    supervise_depth = config.name.startswith("bevdepth")
    depth_net: nn.Module
    if not supervise_depth:
        depth_net = PlainDepthNet(*sizes)
    elif config.depth_net == "dcn":
        depth_net = DeformableDepthNet(*sizes, config.depth_channels)
    else:
        depth_net = DepthNet(*sizes)
    return BevDetector(config, depth_net, supervise_depth)
