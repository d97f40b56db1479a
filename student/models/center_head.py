"""The centre head (CenterPoint, Yin et al. 2021): the network, and its maps -> boxes.

Classes of all tasks share one heatmap, in the tasks' order; the other maps have one row for each task. The maps' z is
the box's centre; a box's z is its bottom.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cache.errors import ConfigError, DataError, MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, Decoding, NmsType
from student.config.student import HeadConfig
from student.models.lift_splat import cell_matrix
from student.models.nms import circle_nms, rotated_nms

HEAD_MAPS = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
"""Channels of a task's maps: offset in the cell (x, y), z, log dx, dy, dz, sine and cosine of yaw, velocity.
Side by side in this order they are a box's code, which `HeadConfig.code_weights` weighs."""

PRIOR_LOGIT = -2.19
"""The heatmap's first bias: a probability of 0.1 everywhere."""

Tasks = tuple[tuple[str, ...], ...]


class CenterHead(nn.Module):
    """A shared convolution, then two for each map of each task; its tensors are named as in mmdet3d's CenterHead.

    Raises:
        ConfigError: a task names an unknown class.
    """

    def __init__(self, in_channels: int, config: HeadConfig) -> None:
        super().__init__()
        labels_of_channels(config.tasks)
        shared = config.shared_channels
        self.shared_conv = ConvBnRelu(in_channels, shared)
        self.task_heads = nn.ModuleList(TaskHead(shared, classes=len(task)) for task in config.tasks)

    def forward(
        self, x: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B K H W"], dict[str, Float[Tensor, "B T _ H W"]]]:
        """The heatmap's logits and the other maps by name."""
        x = self.shared_conv(x)
        by_task = [task(x) for task in self.task_heads]
        heatmap = torch.cat([maps["heatmap"] for maps in by_task], dim=1)
        return heatmap, {name: torch.stack([maps[name] for maps in by_task], dim=1) for name in HEAD_MAPS}


class TaskHead(nn.Module):
    """The maps of one task by name, the classes' heatmap among them."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        for name, width in {**HEAD_MAPS, "heatmap": classes}.items():
            last = nn.Conv2d(channels, width, 3, padding=1)
            if name == "heatmap":
                nn.init.constant_(last.get_parameter("bias"), PRIOR_LOGIT)
            self.add_module(name, nn.Sequential(ConvBnRelu(channels, channels), last))

    def forward(self, x: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, "B _ H W"]]:
        return {name: branch(x) for name, branch in self.named_children()}


class ConvBnRelu(nn.Module):
    """3 x 3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        return self.bn(self.conv(x)).relu()


def labels_of_channels(tasks: Tasks) -> list[int]:
    """The label (index into CLASSES) of each of the heatmap's channels.

    Raises:
        ConfigError: a task names an unknown class.
    """
    names = [name for task in tasks for name in task]
    for name in names:
        if name not in CLASSES:
            raise ConfigError(
                "a task of the centre head names an unknown class",
                got=name,
                expected=f"some of {', '.join(CLASSES)}",
                cure="Rename it, or use a head of the nuScenes classes",
            )
    return [CLASSES.index(name) for name in names]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one sample, on the CPU.

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
    """Boxes of probabilities and maps, a student's or a cached teacher's: task by task, best first.

    Agrees with mmdet3d's CenterPointBBoxCoder and CenterHead.predict_by_feat.

    Raises:
        ConfigError: a task names an unknown class, or `decoding` has not one entry for each task or class.
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
        ConfigError: a task names an unknown class, or `decoding` has not one entry for each task or class.
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
    """The best cells of a task's classes as boxes, whose z is still the centre, one set for each sample."""
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
    """Those above the score threshold whose centre is in the range."""
    low, high = torch.tensor(decoding.post_center_range).split(3)
    center = found.boxes[:, :3]
    bad = ~found.scores.isfinite() | ((found.scores > decoding.score_threshold) & ~found.boxes.isfinite().all(dim=1))
    if bad.any():
        raise DataError(
            "the centre head gives a score or a box that is not finite",
            got=f"{int(bad.sum())} of {len(found)} candidates",
            cure="Check the training for NaN",
        )
    return found[(found.scores > decoding.score_threshold) & ((center >= low) & (center <= high)).all(dim=1)]


def _suppress(found: Detections, suppression: Suppression, decoding: Decoding) -> Detections:
    """What non-maximum suppression leaves of one task's candidates."""
    if suppression.nms_type == "circle":
        kept = circle_nms(found.boxes[:, :2].numpy(), suppression.threshold, decoding.post_max_size)
    else:
        footprints = found.boxes[: decoding.pre_max_size, [0, 1, 3, 4, 6]]
        footprints[:, 2:4] *= suppression.scale[found.labels[: decoding.pre_max_size], None]
        kept = rotated_nms(footprints.numpy(), suppression.threshold, decoding.post_max_size)
    return found[torch.from_numpy(kept)]


def _join(parts: list[Detections]) -> Detections:
    """One sample's tasks side by side, with z at the bottom."""
    boxes = torch.cat([part.boxes for part in parts])
    boxes[:, 2] -= boxes[:, 5] / 2
    return Detections(
        boxes=boxes, scores=torch.cat([p.scores for p in parts]), labels=torch.cat([p.labels for p in parts])
    )
