"""Heatmaps and box maps of a centre head -> detections: peak selection, box decoding, non-maximum suppression."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.errors import ConfigError, DataError, MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, Decoding, NmsType
from student.distill.head_maps import HEAD_MAPS
from student.models.center_head import Tasks, labels_of_channels
from student.models.lift_splat import cell_matrix
from student.models.nms import circle_nms, rotated_nms

DIVERGED = "Evaluate an earlier checkpoint, or train again with a lower training.learning_rate"


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The detections of one sample, on the CPU.

    boxes: x, y, z (bottom), dx, dy, dz in metres, yaw_rad, vx, vy in m/s, in the frame of the grid.
    labels: index into cache.spec.CLASSES.
    """

    boxes: Float[Tensor, "M 9"]
    scores: Float[Tensor, "M"]
    labels: Int[Tensor, "M"]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Bool[Tensor, "M"] | Int[Tensor, "_"]) -> "Detections":
        return Detections(boxes=self.boxes[chosen], scores=self.scores[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """One task's non-maximum suppression.

    threshold: metres between centres (circle), or intersection over union (rotate).
    scale: factor of each label's dx and dy while boxes are compared.
    """

    nms_type: NmsType
    threshold: float
    scale: Float[Tensor, "classes"]


@torch.no_grad()
def decode(
    heatmap: Float[Tensor, "B K H W"],
    head_maps: dict[str, Float[Tensor, "B T _ H W"]],
    grid: BevGrid,
    tasks: Tasks,
    decoding: Decoding,
) -> list[Detections]:
    """Decode probabilities and maps, a student's or a cached teacher's, into boxes: task by task, best first.

    Agrees with mmdet3d's CenterPointBBoxCoder and CenterHead.predict_by_feat.

    Raises:
        ConfigError: a task names an unknown class, or `decoding` lacks one entry for each task or class.
        MismatchError: a map is missing, or the maps are not those of the tasks.
        DataError: a score or a box is not finite.
    """
    labels, suppressions = labels_of_channels(tasks), suppression_of_tasks(tasks, decoding)
    _require_maps(heatmap, head_maps, tasks)
    of_task = torch.tensor(labels, device=heatmap.device).split([len(task) for task in tasks])
    channels = heatmap.float().split([len(task) for task in tasks], dim=1)
    found: list[list[Detections]] = [[] for _ in heatmap]
    for index, suppression in enumerate(suppressions):
        code = torch.cat([head_maps[name][:, index].float() for name in HEAD_MAPS], dim=1)
        for sample, best in enumerate(_candidates(channels[index], code, of_task[index], grid, decoding)):
            found[sample].append(_suppress(_in_range(best, decoding), suppression, decoding))
    return [_join(parts) for parts in found]


def suppression_of_tasks(tasks: Tasks, decoding: Decoding) -> list[Suppression]:
    """Each task's NMS.

    Raises:
        ConfigError: a task names an unknown class, or `decoding` lacks one entry for each task or class.
    """
    labels, count = labels_of_channels(tasks), len(tasks)
    scale = torch.ones(len(CLASSES))
    scale[labels] = torch.tensor(_for_each("nms_scale", decoding.nms_scale or 1.0, len(labels)))
    types = _for_each("nms_type", decoding.nms_type, count)
    # mmdet3d compares its radius with squared distances; no task needs one where all of them rotate.
    radii = _for_each("min_radius", decoding.min_radius if "circle" in types else 0.0, count)
    overlaps = _for_each("nms_thr", decoding.nms_thr, count)
    return [
        Suppression(nms_type=kind, threshold=math.sqrt(radius) if kind == "circle" else overlap, scale=scale)
        for kind, radius, overlap in zip(types, radii, overlaps, strict=True)
    ]


def _for_each(name: str, value: Any, count: int) -> tuple:
    """A value for each of `count` tasks or classes."""
    if not isinstance(value, tuple):
        return (value,) * count
    if len(value) != count:
        raise ConfigError(
            "a list of the decoding does not fit the centre head's tasks",
            where=f"decoding.{name}",
            got=f"{len(value)} entries",
            expected=f"{count}, one for each task (nms_scale: for each class)",
            cure="Change it, or the tasks",
        )
    return value


def _require_maps(heatmap: Tensor, head_maps: dict[str, Tensor], tasks: Tasks) -> None:
    batch, channels, *size = heatmap.shape
    got = {"heatmap": (batch, channels, *size), **{name: tuple(value.shape) for name, value in head_maps.items()}}
    expected = {"heatmap": (batch, sum(map(len, tasks)), *size)}
    expected |= {name: (batch, len(tasks), width, *size) for name, width in HEAD_MAPS.items()}
    for name, shape in expected.items():
        if got.get(name) != shape:
            raise MismatchError(
                "a map of the centre head is not what its tasks need",
                where=name,
                got=got.get(name, "no such map"),
                expected=shape,
                cure="Dump the head's maps, and give the tasks of the head that made them",
            )


def _candidates(
    probability: Float[Tensor, "B c H W"],
    code: Float[Tensor, "B 10 H W"],
    labels: Int[Tensor, "c"],
    grid: BevGrid,
    decoding: Decoding,
) -> list[Detections]:
    """The best cells of a task's classes as boxes for each sample; their z is still the centre."""
    _, classes, height, width = probability.shape
    scores, index = probability.flatten(1).topk(min(decoding.max_per_frame, classes * height * width))
    cell = index % (height * width)
    code = code.flatten(2).gather(2, cell[:, None].expand(-1, code.shape[1], -1)).transpose(1, 2)
    offset, z, size, heading, velocity = code.split(list(HEAD_MAPS.values()), dim=-1)
    to_cells = cell_matrix(grid, code)
    xy = (torch.stack([cell % width, cell // width], dim=-1) + offset - to_cells[:2, 2]) / to_cells.diagonal()[:2]
    size = size.exp() if decoding.log_dimensions else size
    yaw = torch.atan2(heading[..., :1], heading[..., 1:])
    boxes = torch.cat([xy, z, size, yaw, velocity], dim=-1)
    columns = zip(boxes.cpu(), scores.cpu(), labels[index // (height * width)].cpu(), strict=True)
    return [Detections(boxes=b, scores=s, labels=k) for b, s, k in columns]


def _in_range(found: Detections, decoding: Decoding) -> Detections:
    """Detections above the score threshold whose centre is in the range."""
    low, high = torch.tensor(decoding.post_center_range).split(3)
    center = found.boxes[:, :3]
    bad = ~found.scores.isfinite() | ((found.scores > decoding.score_threshold) & ~found.boxes.isfinite().all(dim=1))
    if bad.any():
        raise DataError(
            "the centre head gives a score or a box that is not finite",
            got=f"{int(bad.sum())} of {len(found)} candidates",
            cure=DIVERGED,
        )
    return found[(found.scores > decoding.score_threshold) & ((center >= low) & (center <= high)).all(dim=1)]


def _suppress(found: Detections, suppression: Suppression, decoding: Decoding) -> Detections:
    """Non-maximum suppression of one task's candidates."""
    if suppression.nms_type == "circle":
        kept = circle_nms(found.boxes[:, :2].numpy(), suppression.threshold, decoding.post_max_size)
    else:
        footprints = found.boxes[: decoding.pre_max_size, [0, 1, 3, 4, 6]]
        footprints[:, 2:4] *= suppression.scale[found.labels[: decoding.pre_max_size], None]
        kept = rotated_nms(footprints.numpy(), suppression.threshold, decoding.post_max_size)
    return found[torch.from_numpy(kept)]


def _join(parts: list[Detections]) -> Detections:
    """Concatenate one sample's tasks, with z at the bottom."""
    boxes = torch.cat([part.boxes for part in parts])
    boxes[:, 2] -= boxes[:, 5] / 2
    return Detections(
        boxes=boxes, scores=torch.cat([p.scores for p in parts]), labels=torch.cat([p.labels for p in parts])
    )
