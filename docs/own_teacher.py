"""A teacher of your own: `cli dump-teacher CONFIG --teacher own_teacher:make_teacher`, run where this file lies.

The network is built as OpenPCDet's are: a dictionary `batch` passes through its modules, each of which adds to it.
"""

import numpy as np
import torch
from torch import nn

from cache import BevGrid, PointPipeline, TeacherIdentity, TeacherInput, TeacherOutput, weights_sha256

CANVAS = BevGrid(x_range_m=(-16.0, 16.0), y_range_m=(-16.0, 16.0), cell_m=(0.4, 0.4))
CLASSES = (("car",), ("pedestrian",))


class Network(nn.Module):
    """Stands for OpenPCDet's: maps of points -> batch["spatial_features_2d"], batch["hm"]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone_2d = nn.Sequential(nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.ReLU())
        self.dense_head = nn.Conv2d(8, 2, 1)

    def forward(self, batch: dict) -> dict:
        batch["spatial_features_2d"] = self.backbone_2d(batch["spatial_features"])
        batch["hm"] = self.dense_head(batch["spatial_features_2d"])
        return batch


def prepare(frame: TeacherInput) -> torch.Tensor:
    """In a loader worker: counts of points and their largest height, (2, H, W). Cameras are in frame.cameras."""
    cells = np.floor(CANVAS.to_cells(frame.points[:, :2].astype(np.float64))).astype(int)
    height, width = CANVAS.shape
    inside = ((cells >= 0) & (cells < (width, height))).all(axis=1)
    maps = np.zeros((2, height, width), np.float32)
    rows, columns = cells[inside, 1], cells[inside, 0]  # row = y, column = x
    np.add.at(maps[0], (rows, columns), 1)
    np.maximum.at(maps[1], (rows, columns), frame.points[inside, 2] + 5)
    return torch.from_numpy(maps)


class OwnTeacher(nn.Module):
    """What cache.Teacher asks for: attributes, `prepare`, a call and `head_weights`."""

    def __init__(self, network: nn.Module, identity: TeacherIdentity, device: str) -> None:
        super().__init__()
        self.network = network.to(device)
        self.eval().requires_grad_(False)  # A dump refuses a teacher that trains.
        self.identity, self.device = identity, device
        self.points = PointPipeline(past_sweeps=9)
        self.canvas_grid, self.heatmap_grid = CANVAS, CANVAS.coarser(2)
        self.layer_grids = {"head": self.heatmap_grid}
        self.prepare = prepare  # Pickled for the workers: no method of this object, which holds the network.

    def forward(self, prepared: list[torch.Tensor]) -> TeacherOutput:
        maps = torch.stack(prepared).to(self.device)
        batch = self.network({"spatial_features": maps})
        return TeacherOutput(
            layers={"head": batch["spatial_features_2d"]},
            heatmap=batch["hm"].sigmoid(),  # None where the detector has no heatmaps
            head_maps={},
            canvas_mask=maps[:, 0] > 0,
        )

    def head_weights(self) -> dict[str, torch.Tensor]:
        return {name: value.cpu() for name, value in self.network.dense_head.state_dict().items()}


def make_teacher(checkpoint, device: str) -> OwnTeacher:
    """Called with --checkpoint (None with --random-weights) and the device."""
    torch.manual_seed(0)
    network = Network()
    if checkpoint is not None:
        network.load_state_dict(torch.load(checkpoint, weights_only=True)["model_state"])
    identity = TeacherIdentity(
        name="own-pillars",
        weights="random" if checkpoint is None else "checkpoint",
        weights_sha256=weights_sha256(network),
        config_sha256="0" * 64,  # of whatever else decides the network
        tasks=CLASSES,
    )
    return OwnTeacher(network, identity, device)
