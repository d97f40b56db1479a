"""An mmdet3d detector as a `Teacher`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from cache.teacher.mmdet3d_points import input_columns, point_pipeline
from cache.teacher.mmdet3d_voxels import (
    CpuVoxels,
    Prepared,
    Voxelise,
    collate,
    occupied,
    rows_along_x,
    voxel_layer_of,
    voxelises_itself,
)
from cache.teacher.recorded import require_same_training
from cache.teacher.sparse import sparse_convolutions


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
        device: where the network runs; mmdet3d's preprocessor voxelises on the CPU.
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
    columns = input_columns(resolved.model) or len(COLUMNS)
    return Mmdet3dTeacher(network, identity, point_pipeline(resolved, hook), device, columns)


class Mmdet3dTeacher(nn.Module):
    """An mmdet3d detector as a `Teacher`.

    The detector is in eval mode and its parameters require no gradient from the start; `train()` does not change it.
    Layers are the BEV neck's output (`head`; a pyramid's further levels are `head1`, ...), the stages of the BEV
    backbone (`backbone0..`) and, of a sparse encoder, its own output (`middle`); row = y, column = x, into which the
    maps of a detector whose rows run along x are transposed.
    """

    def __init__(
        self,
        network: Detector,
        identity: TeacherIdentity,
        points: PointPipeline,
        device: torch.device | str,
        columns: int = len(COLUMNS),
    ) -> None:
        super().__init__()
        super().train(False)
        self.network: Detector = network.eval().requires_grad_(False)
        self.identity = identity
        self.points = points
        self.prepare = Voxelise.of(network, points, columns)
        self.canvas_grid = canvas_grid(voxel_layer_of(network), identity.name)
        self.has_heatmap = has_heatmap(network)
        self.along_x = rows_along_x(network, identity.name)
        if voxelises_itself(network):
            network.pts_voxel_layer = CpuVoxels(network.pts_voxel_layer, self.along_x)
        require_consistent(network, self.canvas_grid, self.along_x, identity.name)
        produced = self._try_out(device)
        self.layer_grids = {
            name: strided(self.canvas_grid, _size(layer), name, identity.name)
            for name, layer in produced.layers.items()
        }
        self.head_channels = produced.layers["head"].shape[1]
        self.heatmap_grid = self.layer_grids["head"]
        if produced.heatmap is not None:
            self.heatmap_grid = strided(self.canvas_grid, _size(produced.heatmap), "heatmap", identity.name)
            require_decodable(network, self.canvas_grid, self.heatmap_grid.shape, self.along_x, identity.name)

    def train(self, mode: bool = True) -> "Mmdet3dTeacher":
        """Stay in eval mode: neither batch statistics nor dropout may change, whichever module owns the teacher."""
        return self

    def forward(self, prepared: list[Prepared]) -> TeacherOutput:
        """Run B prepared frames through the network, without gradients."""
        inputs = collate(prepared, next(self.network.parameters()).device)
        parts = {
            "head": self.network.pts_neck,
            "backbone": self.network.pts_backbone,
            "middle": self.network.pts_middle_encoder,
        }
        with torch.inference_mode():
            with _passing(parts) as (taken, outputs):
                self.network.extract_feat(inputs, [{}] * len(prepared))
            heatmap, head_maps = self._head_maps(outputs["head"][0]) if self.has_heatmap else (None, {})
            if not sparse_convolutions(self.network.pts_middle_encoder):
                del outputs["middle"]
            layers = _named(outputs)
            return TeacherOutput(
                layers={name: layer.mT.contiguous() for name, layer in layers.items()} if self.along_x else layers,
                heatmap=heatmap,
                head_maps=head_maps,
                canvas_mask=occupied(taken["middle"][1], len(prepared), self.canvas_grid.shape, self.along_x),
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
        low, high = np.split(np.asarray(self.prepare.range_m), 2)
        taken = self.points.columns
        points = np.zeros((64, self.prepare.columns if taken is None else len(COLUMNS)), np.float32)
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


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _named(outputs: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Layers by their names in a store."""
    first, *levels = outputs["head"]
    named = {"head": first} | {f"head{index}": level for index, level in enumerate(levels, start=1)}
    named |= {f"backbone{index}": stage for index, stage in enumerate(outputs["backbone"])}
    return named | ({"middle": outputs["middle"][0]} if "middle" in outputs else {})


@contextmanager
def _passing(parts: dict[str, nn.Module]) -> Iterator[tuple[dict[str, tuple], dict[str, list[Tensor]]]]:
    """Record what modules take and return within the context: mmdet3d's own forward pass keeps the neck's output."""
    taken: dict[str, tuple] = {}
    outputs: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, inputs: Any, output: Any) -> None:
            taken[name] = inputs
            outputs[name] = [output] if isinstance(output, Tensor) else list(output)

        return keep

    handles = [module.register_forward_hook(record(name)) for name, module in parts.items()]
    try:
        yield taken, outputs
    finally:
        for handle in handles:
            handle.remove()
