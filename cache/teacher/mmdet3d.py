"""An mmdet3d centre detector as a `Teacher`."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cache.errors import TeacherError
from cache.geometry.grid import BevGrid
from cache.spec import PointPipeline, TeacherIdentity
from cache.teacher.base import TeacherOutput
from cache.teacher.checkpoint import load_weights, weights_sha256
from cache.teacher.mmdet3d_config import (
    Detector,
    build_detector,
    config_sha256,
    decoding_of,
    initialise,
    point_pipeline,
    read_config,
)

Voxels = dict[str, Tensor]
"""mmdet3d's own format: `voxels`, `coors` (batch, z, y, x) and what else the detector's encoder takes."""


def load_teacher(
    config: str, checkpoint: Path | None, device: torch.device | str = "cpu", random_seed: int = 0
) -> "Mmdet3dTeacher":
    """A teacher from an mmdet3d configuration.

    Args:
        config: a .py file, or a name of mmdet3d's model zoo. The detector needs a BEV neck and a CenterHead.
        checkpoint: its weights; None for random ones, which are marked as such in the identity.
        device: where the network runs; voxels are always made on the CPU.
        random_seed: of the random weights.

    Raises:
        TeacherError: mmdet3d is missing; the configuration is unknown or no centre detector; the checkpoint is missing,
            unsafe, another detector's or not finite; the network cannot run on the device.
    """
    resolved = read_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        network = build_detector(resolved)
        if checkpoint is None:
            initialise(network)
        else:
            load_weights(network, checkpoint)
    head = network.pts_bbox_head
    identity = TeacherIdentity(
        name=Path(resolved.filename).stem,
        weights="random" if checkpoint is None else "checkpoint",
        weights_sha256=weights_sha256(network),
        config_sha256=config_sha256(resolved),
        tasks=tuple(tuple(names) for names in head.class_names),
        decoding=decoding_of(head),
    )
    return Mmdet3dTeacher(network, identity, point_pipeline(resolved), device)


@dataclass(frozen=True, kw_only=True)
class Voxelise:
    """Points -> voxels with the detector's own preprocessor, which has no weights and is pickled cheaply."""

    preprocessor: Any

    def __call__(self, points: Float[np.ndarray, "N 5"]) -> Voxels:
        """Voxels of one frame.

        Raises:
            TeacherError: no point lies within the detector's range.
        """
        voxels = self.preprocessor.voxelize([torch.from_numpy(np.ascontiguousarray(points, np.float32))], None)
        if not (voxels["coors"] >= 0).all(dim=1).any():
            range_m = self.preprocessor.voxel_layer.point_cloud_range
            raise TeacherError(
                "no point of the frame lies within the teacher's range",
                got=f"{len(points)} points",
                expected=f"some with x, y, z in {range_m[:3]} .. {range_m[3:]}",
            )
        return voxels


class Mmdet3dTeacher(nn.Module):
    """An mmdet3d centre detector as a `Teacher`.

    The detector is in eval mode and its parameters require no gradient from the start; `train()` does not change it.
    Layers are the BEV neck's output (`head`) and the stages of the BEV backbone (`backbone0..`), row = y, column = x.
    """

    def __init__(
        self, network: Detector, identity: TeacherIdentity, points: PointPipeline, device: torch.device | str
    ) -> None:
        super().__init__()
        super().train(False)
        self.network: Detector = network.eval().requires_grad_(False)
        self.identity = identity
        self.points = points
        self.prepare = Voxelise(preprocessor=copy.deepcopy(network.data_preprocessor))
        self.canvas_grid = _canvas_grid(self.prepare.preprocessor.voxel_layer)
        produced = self._try_out(device)
        self.layer_grids = {name: self.canvas_grid.resized(_size(layer)) for name, layer in produced.layers.items()}
        self.heatmap_grid = self.canvas_grid.resized(_size(produced.heatmap))

    def train(self, mode: bool = True) -> "Mmdet3dTeacher":
        """Stay in eval mode: neither batch statistics nor dropout may change, whichever module owns the teacher."""
        return self

    def forward(self, prepared: list[Voxels]) -> TeacherOutput:
        """Run B prepared frames through the network, without gradients."""
        device = next(self.network.parameters()).device
        voxels = _collate(prepared, device)
        with torch.inference_mode(), _outputs_of(self.network.pts_backbone) as stages:
            _, (bev, *_) = self.network.extract_feat({"voxels": voxels}, [{}] * len(prepared))
            tasks = [levels[0] for levels in self.network.pts_bbox_head([bev])]
            return TeacherOutput(
                layers={"head": bev} | {f"backbone{index}": stage for index, stage in enumerate(stages)},
                heatmap=torch.cat([task["heatmap"] for task in tasks], dim=1).sigmoid(),
                head_maps={
                    name: torch.stack([task[name] for task in tasks], dim=1) for name in tasks[0] if name != "heatmap"
                },
                canvas_mask=_occupied(voxels["coors"], len(prepared), self.canvas_grid.shape),
            )

    def head_weights(self) -> dict[str, Tensor]:
        """The CenterHead's state dict, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.network.pts_bbox_head.state_dict().items()}

    def _try_out(self, device: torch.device | str) -> TeacherOutput:
        """Run a synthetic frame, which gives the maps' shapes and shows whether the device has all operators."""
        low, high = np.split(np.asarray(self.prepare.preprocessor.voxel_layer.point_cloud_range), 2)
        points = np.zeros((64, 5), np.float32)
        points[:, :3] = np.linspace(low, high, len(points), endpoint=False)
        try:
            self.network.to(device)
            return self([self.prepare(points)])
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise TeacherError(
                "the teacher cannot run on this device",
                where=self.identity.name,
                got=f"{device}: {str(error).strip().splitlines()[0]}",
                cure="Try another device; sparse and deformable convolutions need spconv, or an mmcv built with CUDA",
            ) from error


def _canvas_grid(voxel_layer: Any) -> BevGrid:
    x0, y0, _, x1, y1, _ = map(float, voxel_layer.point_cloud_range)
    cell_x, cell_y, _ = map(float, voxel_layer.voxel_size)
    return BevGrid(x_range_m=(x0, x1), y_range_m=(y0, y1), cell_m=(cell_x, cell_y))


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _collate(prepared: list[Voxels], device: torch.device) -> Voxels:
    """Frames' voxels in one dictionary; the first coordinate of a voxel is its frame's number."""
    batch = {name: torch.cat([voxels[name] for voxels in prepared]) for name in prepared[0]}
    sizes = torch.tensor([len(voxels["coors"]) for voxels in prepared])
    batch["coors"][:, 0] = torch.repeat_interleave(torch.arange(len(prepared)), sizes)
    return {name: part.to(device) for name, part in batch.items()}


def _occupied(coors: Tensor, frames: int, shape: tuple[int, int]) -> Bool[Tensor, "B H W"]:
    mask = torch.zeros(frames, *shape, dtype=torch.bool, device=coors.device)
    frame, _, row, column = coors[(coors >= 0).all(dim=1)].long().unbind(1)
    mask[frame, row, column] = True
    return mask


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record what `module` returns within the context: mmdet3d's own forward pass keeps only the neck's output."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.extend(output))
    try:
        yield outputs
    finally:
        handle.remove()
