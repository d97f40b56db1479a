"""mmdet3d, with mmcv 1.x or mmengine: a pipeline step that reads stores, and a detector that learns from them."""

import math
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Dict, Mapping, Tuple

import mmcv
import numpy as np
import torch
from pyquaternion import Quaternion
from torch import Tensor, nn
from torch.utils.data._utils.collate import default_collate

from .objective import DistillObjective, read_aligned, tapped
from .reader import BevCacheError, Grid, Names, TeacherStore

if mmcv.__version__.startswith("1."):
    from mmcv.runner import HOOKS, Hook
    from mmdet.datasets.builder import PIPELINES
    from mmdet.models.builder import DETECTORS as MODELS
else:
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS, MODELS
    from mmengine.registry import TRANSFORMS as PIPELINES

Config = Mapping[str, Any]


def mmdet3d_matrix(results: Config) -> Tuple[np.ndarray, np.ndarray]:
    """mmdet3d's augmentation (4, 4), as its steps record it, of a detector in the LiDAR frame."""
    flow, scale = results.get("transformation_3d_flow", []), results.get("pcd_scale_factor", 1)
    if flow.count("R") > 1 or len(results.get("img_inputs", ())) > 6:
        raise BevCacheError("not mmdet3d's augmentation, once", got=flow, cure="Set matrix: bevdet, or a function")
    steps = {"R": np.eye(4), "S": np.diag([scale, scale, scale, 1]), "T": np.eye(4)}
    steps["R"][:3, :3] = np.asarray(results.get("pcd_rotation", np.eye(3))).T
    steps["T"][:3, 3] = results.get("pcd_trans", 0)
    steps.update(HF=np.diag([1, -1, 1, 1]), VF=np.diag([-1, 1, 1, 1]))
    return reduce(lambda matrix, step: steps[step] @ matrix, flow, np.eye(4)), np.eye(4)


def bevdet_matrix(results: Config) -> Tuple[np.ndarray, np.ndarray]:
    """BEVDet dev3.0: bda_mat, and LiDAR -> the key frame's ego vehicle when its first camera took its image."""
    augmentation, bda = np.eye(4), np.asarray(results["img_inputs"][6])
    augmentation[: len(bda), : len(bda)] = bda
    key_to_global, info = np.asarray(results["img_inputs"][2])[0].astype(np.float64), results["curr"]
    if key_to_global.shape != (4, 4):
        raise BevCacheError("img_inputs[2] is not ego2globals", "LoadTeacherFeatures", key_to_global.shape, (4, 4))
    frame = np.linalg.inv(key_to_global)
    for name in ("ego2global", "lidar2ego"):
        pose = Quaternion(info[f"{name}_rotation"]).transformation_matrix
        pose[:3, 3] = info[f"{name}_translation"]
        frame = frame @ pose
    return augmentation, frame


MATRICES = {"mmdet3d": mmdet3d_matrix, "bevdet": bevdet_matrix}


@PIPELINES.register_module()
class LoadTeacherFeatures:
    """Pipeline step, after augmentation: read a sample's teacher by `token`, or `sample_idx`, into results["teacher"].

    `matrix` is mmdet3d, bevdet, or a function, results -> (A, E) (docs/plugins.md); `pack` is mmdet3d 1.x's last step.
    """

    def __init__(self, store: str, layers: Names = None, matrix: Any = "mmdet3d", pack: Any = None) -> None:
        self.store, self.layers = TeacherStore(store), layers
        self.matrix = MATRICES[matrix] if isinstance(matrix, str) else matrix
        self.pack = None if pack is None else PIPELINES.build(pack)

    def __call__(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """Add the maps and `to_teacher` of the stored view that is nearest to the augmentation."""
        token, (augmentation, frame) = results.get("token") or results["sample_idx"], self.matrix(results)
        results.setdefault("teacher", []).append(read_aligned(self.store, token, augmentation, frame, self.layers))
        if self.pack is None:
            return results
        packed = self.pack(results)
        packed["data_samples"].teacher = results["teacher"]
        return packed


@HOOKS.register_module()
class DistillEpochHook(Hook):
    """Tell the detector the epoch; needed where the configuration names epochs."""

    def before_train_epoch(self, runner: Any) -> None:
        getattr(runner.model, "module", runner.model).bevcache_epoch = runner.epoch


@MODELS.register_module()
class Distilled:
    """Builds a detector that learns from stores as well, an instance of its own class (docs/plugins.md: the arguments).

    Its losses are called `loss_distill/...`, the adapters lie in `bevcache`, and it tests as it does without.
    """

    def __new__(
        cls, detector: Any, store: Any, distill: Config, taps: Config, layers: Config, classes: Any, **options: Any
    ) -> Any:
        head, grid = options.pop("head", "pts_bbox_head"), options.pop("heatmap_grid", None)
        boxes = options.pop("boxes", "mmdet3d-1.x")
        model = _build(detector, {key: value for key, value in options.items() if value is not None})
        specs = [TeacherStore(path).spec for path in ([store] if isinstance(store, str) else store)]
        grids = {name: (layer["channels"], Grid(**layer["grid"])) for name, layer in layers.items()}
        grid = next(iter(grids.values()))[1] if grid is None else Grid(**grid)
        model.bevcache = DistillObjective(distill, grids, grid, classes, specs)
        model.bevcache_taps = {**taps, "logits": head} if model.bevcache.needs_logits else dict(taps)
        model.bevcache_boxes, model.bevcache_epoch = boxes, None
        model.__class__ = type(f"Distilled{type(model).__name__}", (_Learner, type(model)), {})
        return model


class _Learner(nn.Module):
    """What comes before a distilled detector's class: losses of the objective beside the detector's own."""

    bevcache: Any
    bevcache_taps: Dict[str, str]
    bevcache_boxes: str
    bevcache_epoch: Any

    def loss(self, inputs: Any, data_samples: Any, **kwargs: Any) -> Dict[str, Any]:
        """mmdet3d 1.x: the losses of a batch, by name."""
        with tapped(self, self.bevcache_taps, logits=_logits) as found:
            losses = super().loss(inputs, data_samples, **kwargs)  # type: ignore[misc]
        truth = [(sample.gt_instances_3d.bboxes_3d, sample.gt_instances_3d.labels_3d) for sample in data_samples]
        teachers = [getattr(sample, "teacher", None) for sample in data_samples]
        return self._distill(losses, found, None if None in teachers else default_collate(teachers), *zip(*truth))

    def forward_train(self, *args: Any, teacher: Any = None, **kwargs: Any) -> Dict[str, Any]:
        """mmcv 1.x: the losses of a batch, by name."""
        with tapped(self, self.bevcache_taps, logits=_logits) as found:
            losses = super().forward_train(*args, **kwargs)  # type: ignore[misc]
        return self._distill(losses, found, teacher, kwargs["gt_bboxes_3d"], kwargs["gt_labels_3d"])

    def _distill(self, losses: Dict[str, Any], found: Dict[str, Any], teachers: Any, boxes: Any, labels: Any) -> Any:
        objective, epoch = self.bevcache, self.bevcache_epoch
        if teachers is None:
            cure = "Add LoadTeacherFeatures to the train pipeline, and its result to Collect3D's keys, or set its pack"
            raise BevCacheError("the batch has no teacher", cure=cure)
        if epoch is None and objective.names_epochs:
            raise BevCacheError("the epoch is not known", cure="Add dict(type='DistillEpochHook') to custom_hooks")
        device = next(self.parameters()).device
        moved = [{n: x if n == "to_teacher" else x.to(device) for n, x in teacher.items()} for teacher in teachers]
        boxes = [_boxes(box.tensor.to(device), self.bevcache_boxes) for box in boxes]
        labels = [label.to(device) for label in labels]
        terms = objective(found, found.get("logits"), moved, boxes, labels, epoch or 0)
        weight, own = objective.detection_weight(epoch or 0), {k: v for k, v in losses.items() if "loss" in k}
        own = {k: [x * weight for x in v] if isinstance(v, list) else v * weight for k, v in own.items()}
        return {**losses, **own, **{f"loss_{name}": value for name, value in terms.items()}}


def export_checkpoint(source: str, target: str) -> None:
    """Write a checkpoint's meta and weights without the objective's: what the detector alone loads, strictly."""
    unsafe = {"weights_only": False} if hasattr(torch.serialization, "add_safe_globals") else {}
    checkpoint = torch.load(source, map_location="cpu", **unsafe)
    state = {name: tensor for name, tensor in checkpoint["state_dict"].items() if not name.startswith("bevcache.")}
    torch.save({"meta": checkpoint.get("meta", {}), "state_dict": state}, target)


def _build(detector: Any, defaults: Dict[str, Any]) -> Any:
    if not mmcv.__version__.startswith("1."):
        return MODELS.build({**defaults, **detector})
    builder = "mmdet3d.models.builder" if find_spec("mmdet3d") else "mmdet.models.builder"
    return import_module(builder).build_detector(detector, **defaults)


def _logits(output: Any) -> Tensor:
    """Heatmaps of all tasks before the head's loss overwrites them, (B, K, H, W)."""
    return torch.cat([task[0]["heatmap"].detach() for task in output], 1)


def _boxes(boxes: Tensor, convention: str) -> Tensor:
    """Boxes (M, 7 or more) in mmdet3d 1.x's convention; before, w came before l, and yaw was clockwise from -y."""
    if convention == "mmdet3d-1.x":
        return boxes
    return torch.cat([boxes[:, :3], boxes[:, [4, 3, 5]], -boxes[:, 6:7] - math.pi / 2, boxes[:, 7:]], 1)
