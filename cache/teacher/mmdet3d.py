"""An mmdet3d detector as a `Teacher`."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cache.errors import TeacherError
from cache.spec import COLUMNS, PointPipeline, TeacherIdentity
from cache.teacher.base import TeacherInput, TeacherOutput
from cache.teacher.checkpoint import LoadOptions, load_weights, weights_sha256
from cache.teacher.mmdet3d_config import config_sha256, read_config
from cache.teacher.mmdet3d_detector import (
    Detector,
    build_detector,
    decoding_of,
    has_heatmap,
    head_of,
    initialise,
    tasks_of,
)
from cache.teacher.mmdet3d_grids import canvas_grid, require_consistent, require_decodable, strided
from cache.teacher.mmdet3d_points import point_pipeline
from cache.teacher.recorded import require_same_training
from cache.teacher.sparse import sparse_convolutions

Voxels = dict[str, Tensor]
"""mmdet3d's own format: `voxels`, `coors` (batch, z, y, x) and what else the detector's encoder takes."""


def load_teacher(
    config: str,
    checkpoint: Path | None,
    device: torch.device | str = "cpu",
    random_seed: int = 0,
    options: LoadOptions | None = None,
    hook: str | None = None,
) -> "Mmdet3dTeacher":
    """A teacher from an mmdet3d configuration.

    Args:
        config: a .py file, or a name of mmdet3d's model zoo. The detector needs a BEV backbone, neck and head; heatmaps
            come from a CenterHead alone.
        checkpoint: its weights; None for random ones, which are marked as such in the identity.
        device: where the network runs; voxels are always made on the CPU.
        random_seed: of the random weights.
        options: what the checkpoint's file does not say.
        hook: `module:function` that makes the points instead of the configuration's test pipeline.

    Raises:
        TeacherError: mmdet3d is missing; the configuration is unknown, changes points in a way that a dump does not
            repeat, or is no BEV detector's; the checkpoint is missing, unsafe, another detector's or not finite; the
            network cannot run on the device.
    """
    resolved = read_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        network = build_detector(resolved)
        if checkpoint is None:
            initialise(network)
        else:
            loaded = load_weights(network, checkpoint, options)
            require_same_training(loaded.config_text, resolved, checkpoint)
    identity = TeacherIdentity(
        name=resolved.filename.rsplit("/", 1)[-1].removesuffix(".py"),
        weights="random" if checkpoint is None else "checkpoint",
        weights_sha256=weights_sha256(network),
        config_sha256=config_sha256(resolved),
        tasks=tasks_of(network, resolved),
        decoding=decoding_of(network),
    )
    return Mmdet3dTeacher(network, identity, point_pipeline(resolved, hook), device)


@dataclass(frozen=True, kw_only=True)
class Voxelise:
    """Points -> voxels with the detector's own preprocessor, which has no weights and is pickled cheaply."""

    preprocessor: Any
    pipeline: PointPipeline

    def __call__(self, frame: TeacherInput) -> Voxels:
        """Voxels of one frame.

        Raises:
            TeacherError: no point lies within the detector's range.
        """
        points = self._taken(np.ascontiguousarray(frame.points, np.float32))
        voxels = self.preprocessor.voxelize([torch.from_numpy(points)], None)
        if not (voxels["coors"] >= 0).all(dim=1).any():
            range_m = self.preprocessor.voxel_layer.point_cloud_range
            raise TeacherError(
                "no point of the frame lies within the teacher's range",
                got=f"{len(frame.points)} points",
                expected=f"some with x, y, z in {range_m[:3]} .. {range_m[3:]}",
                cure="Leave the frame out with exclude; where it is every frame, write the points in metres",
            )
        return voxels

    def _taken(self, points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "M C"]:
        """The points and columns that the pipeline leaves, as PointsRangeFilter does: its edges are outside."""
        if self.pipeline.range_m is not None:
            low, high = np.split(np.asarray(self.pipeline.range_m, np.float32), 2)
            points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(axis=1)]
        columns = self.pipeline.columns
        return points if columns is None else np.ascontiguousarray(points[:, columns])


class Mmdet3dTeacher(nn.Module):
    """An mmdet3d detector as a `Teacher`.

    The detector is in eval mode and its parameters require no gradient from the start; `train()` does not change it.
    Layers are the BEV neck's output (`head`; a pyramid's further levels are `head1`, ...), the stages of the BEV
    backbone (`backbone0..`) and, of a sparse encoder, its own output (`middle`); row = y, column = x.
    """

    def __init__(
        self, network: Detector, identity: TeacherIdentity, points: PointPipeline, device: torch.device | str
    ) -> None:
        super().__init__()
        super().train(False)
        self.network: Detector = network.eval().requires_grad_(False)
        self.identity = identity
        self.points = points
        self.prepare = Voxelise(preprocessor=copy.deepcopy(network.data_preprocessor), pipeline=points)
        self.canvas_grid = canvas_grid(self.prepare.preprocessor.voxel_layer, identity.name)
        require_consistent(network, self.canvas_grid, identity.name)
        self.has_heatmap = has_heatmap(network)
        produced = self._try_out(device)
        self.layer_grids = {
            name: strided(self.canvas_grid, _size(layer), name, identity.name)
            for name, layer in produced.layers.items()
        }
        self.head_channels = produced.layers["head"].shape[1]
        self.heatmap_grid = self.layer_grids["head"]
        if produced.heatmap is not None:
            self.heatmap_grid = strided(self.canvas_grid, _size(produced.heatmap), "heatmap", identity.name)
            require_decodable(network, self.canvas_grid, self.heatmap_grid.shape, identity.name)

    def train(self, mode: bool = True) -> "Mmdet3dTeacher":
        """Stay in eval mode: neither batch statistics nor dropout may change, whichever module owns the teacher."""
        return self

    def forward(self, prepared: list[Voxels]) -> TeacherOutput:
        """Run B prepared frames through the network, without gradients."""
        device = next(self.network.parameters()).device
        voxels = _collate(prepared, device)
        parts = {"head": self.network.pts_neck, "backbone": self.network.pts_backbone}
        if sparse_convolutions(self.network.pts_middle_encoder):
            parts["middle"] = self.network.pts_middle_encoder
        with torch.inference_mode():
            with _outputs_of(parts) as outputs:
                self.network.extract_feat({"voxels": voxels}, [{}] * len(prepared))
            heatmap, head_maps = self._head_maps(outputs["head"][0]) if self.has_heatmap else (None, {})
            return TeacherOutput(
                layers=_named(outputs),
                heatmap=heatmap,
                head_maps=head_maps,
                canvas_mask=_occupied(voxels["coors"], len(prepared), self.canvas_grid.shape),
            )

    def head_weights(self) -> dict[str, Tensor]:
        """The head's state dict, on the CPU."""
        return {name: tensor.cpu() for name, tensor in head_of(self.network).state_dict().items()}

    def _head_maps(self, bev: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The CenterHead's heatmap of all tasks, and its other maps by name."""
        tasks = [levels[0] for levels in head_of(self.network)([bev])]
        heatmap = torch.cat([task["heatmap"] for task in tasks], dim=1).sigmoid()
        names = [name for name in tasks[0] if name != "heatmap"]
        return heatmap, {name: torch.stack([task[name] for task in tasks], dim=1) for name in names}

    def _try_out(self, device: torch.device | str) -> TeacherOutput:
        """Run a synthetic frame, which gives the maps' shapes and shows whether the device has all operators."""
        low, high = np.split(np.asarray(self.prepare.preprocessor.voxel_layer.point_cloud_range), 2)
        points = np.zeros((64, self._point_columns()), np.float32)
        points[:, :3] = np.linspace(low, high, len(points), endpoint=False)
        try:
            self.network.to(device)
            return self([self.prepare(TeacherInput.of_points(points))])
        except (RuntimeError, AssertionError, NotImplementedError, IndexError, TypeError) as error:
            raise TeacherError(
                "the teacher cannot run on this device",
                where=self.identity.name,
                got=f"{device}: {_first_line(error)}",
                cure="Choose another with --device; sparse convolutions need spconv's wheel for it",
            ) from error

    def _point_columns(self) -> int:
        """How many columns the points have; a hook's are those that the voxel encoder takes."""
        if self.points.columns is not None:
            return len(COLUMNS)
        encoder = self.network.pts_voxel_encoder
        return int(getattr(encoder, "in_channels", getattr(encoder, "num_features", len(COLUMNS))))


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _named(outputs: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Layers by their names in a store."""
    first, *levels = outputs["head"]
    named = {"head": first} | {f"head{index}": level for index, level in enumerate(levels, start=1)}
    named |= {f"backbone{index}": stage for index, stage in enumerate(outputs["backbone"])}
    return named | ({"middle": outputs["middle"][0]} if "middle" in outputs else {})


@contextmanager
def _outputs_of(parts: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Record what modules return within the context: mmdet3d's own forward pass keeps only the neck's output."""
    outputs: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = [output] if isinstance(output, Tensor) else list(output)

        return keep

    handles = [module.register_forward_hook(record(name)) for name, module in parts.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
