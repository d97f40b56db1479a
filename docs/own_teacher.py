"""A teacher of your own, built as OpenPCDet's are: `cli dump-teacher CONFIG --teacher own_teacher:make_teacher ...`."""

import numpy as np
import torch
from torch import nn

from cache import BevGrid, PointPipeline, TeacherIdentity, TeacherInput, TeacherOutput, weights_sha256

CANVAS = BevGrid(x_range_m=(-16.0, 16.0), y_range_m=(-16.0, 16.0), cell_m=(0.4, 0.4))


def prepare(frame: TeacherInput) -> torch.Tensor:
    """In a loader worker: numbers of points (1, H, W), row = y and column = x; images are in frame.cameras."""
    y, x = frame.points[:, 1], frame.points[:, 0]
    counts, *_ = np.histogram2d(y, x, CANVAS.shape, (CANVAS.y_range_m, CANVAS.x_range_m))
    return torch.from_numpy(counts.astype(np.float32))[None]


class OwnTeacher:
    """The protocol cache.Teacher around a network whose modules add to a dictionary, as OpenPCDet's do."""

    points, prepare = PointPipeline(past_sweeps=9), staticmethod(prepare)
    canvas_grid, heatmap_grid, layer_grids = CANVAS, CANVAS.coarser(2), {"head": CANVAS.coarser(2)}

    def __init__(self, network: nn.ModuleDict, weights: str, device: str) -> None:
        self.network, self.device = network.to(device).eval().requires_grad_(False), device
        decided_by = {"weights_sha256": weights_sha256(network), "config_sha256": "0" * 64}  # of the network's settings
        self.identity = TeacherIdentity(name="own", weights=weights, tasks=(("car",), ("pedestrian",)), **decided_by)

    def __call__(self, prepared: list[torch.Tensor]) -> TeacherOutput:
        """Layers and heatmaps (None where the detector has none) of a batch of prepared frames."""
        batch = {"spatial_features": torch.stack(prepared).to(self.device)}
        batch["spatial_features_2d"] = self.network["backbone_2d"](batch["spatial_features"])
        batch["hm"] = self.network["dense_head"](batch["spatial_features_2d"])
        canvas, layers = batch["spatial_features"][:, 0] > 0, {"head": batch["spatial_features_2d"]}
        return TeacherOutput(layers=layers, heatmap=batch["hm"].sigmoid(), head_maps={}, canvas_mask=canvas)

    def head_weights(self) -> dict[str, torch.Tensor]:
        return {name: value.cpu() for name, value in self.network["dense_head"].state_dict().items()}


def make_teacher(checkpoint, device: str) -> OwnTeacher:
    """The factory, called with --checkpoint (None with --random-weights) and the device."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU())
    network = nn.ModuleDict({"backbone_2d": backbone, "dense_head": nn.Conv2d(8, 2, 1)})  # here: yours
    if checkpoint is not None:
        network.load_state_dict(torch.load(checkpoint, weights_only=True)["model_state"])
    return OwnTeacher(network, "random" if checkpoint is None else "checkpoint", device)
