"""Name maps from public detectors' state dicts to ours, and how to recognise each family of files.

Read from the modules of HuangJunJie2017/BEVDet at mmdet3d 0.17.2 and of qcraftai/distill-bev, which share them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cache.errors import DataError
from student.config.student import DetectorConfig
from student.models.backbones import CLASSIFIERS


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Map names that begin with `public`.

    public: prefix of a name; "*" matches one part of it (between dots).
    ours: replaces the prefix, each "*" in its order; None for a tensor that the student does not use.
    why: the reason why it is not used; for the report.
    """

    public: str
    ours: str | None = None
    why: str = ""

    def match(self, name: str) -> re.Match[str] | None:
        """The match of `public` at the start of a name."""
        return re.match(re.escape(self.public).replace(r"\*", r"([^.]+)"), name)

    def __call__(self, name: str) -> str | None:
        """Our name of a tensor; None where it is not used or the rule does not match."""
        match = self.match(name)
        if match is None or self.ours is None:
            return None
        parts = iter(match.groups())
        return re.sub(r"\*", lambda _: next(parts), self.ours) + name[match.end() :]


def _table(*rows: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(public=public, ours=ours) for public, ours in rows)


SHARED = _table(
    ("img_backbone.", "image_encoder.backbone."),
    ("img_neck.lateral_convs.*.conv.", "image_encoder.neck.lateral_convs.*."),
    ("img_neck.fpn_convs.0.conv.", "image_encoder.neck.fpn_conv."),
    ("pre_process_net.layers.", "pre_process.layers."),
    ("img_bev_encoder_backbone.layers.", "bev_backbone.layers."),
    ("img_bev_encoder_neck.", "bev_neck."),
    ("pts_bbox_head.", "head."),
)
"""Everything but the depth net."""

PLAIN_DEPTH = _table(("img_view_transformer.depthnet.", "lift.depth_net.conv."))
"""ViewTransformerLiftSplatShoot: BEVDet, BEVDet4D."""

DEFORMABLE_DEPTH = _table(
    ("img_view_transformer.se.input_conv.", "lift.depth_net.input_conv."),
    ("img_view_transformer.se.fc.", "lift.depth_net.gate."),
    ("img_view_transformer.extra_depthnet.layers.0.", "lift.depth_net.blocks."),
    ("img_view_transformer.dcn.0.conv_offset.", "lift.depth_net.deform.offset."),
    ("img_view_transformer.dcn.0.", "lift.depth_net.deform.conv."),
    ("img_view_transformer.dcn.1.", "lift.depth_net.deform_bn."),
    ("img_view_transformer.depthnet.", "lift.depth_net.depth_conv."),
    ("img_view_transformer.featnet.", "lift.depth_net.context_conv."),
)
"""ViewTransformerLSSBEVDepth: BEVDepth, BEVDepth4D and DistillBEV's students."""

_GEOMETRY = "grid or depth bins, which the configuration sets; compared with it"
_DISTILLATION = "part of the live teacher or of the distillation, not of the student"

UNUSED = (
    *(Rule(public=f"img_view_transformer.{name}", why=_GEOMETRY) for name in ("dx", "bx", "nx", "frustum")),
    *(Rule(public=f"{name}_adaptations.", why=_DISTILLATION) for name in ("channel_wise", "spatial_wise", "teacher")),
    *(Rule(public=f"{name}_non_locals.", why=_DISTILLATION) for name in ("student", "teacher")),
    *(Rule(public=f"{name}.", why=_DISTILLATION) for name in ("teacher_model", "adaptation_layers")),
)
"""Tensors that a student does not use, and why."""

TORCHVISION = (
    *(Rule(public=classifier, why="the classifier") for classifier in CLASSIFIERS),
    Rule(public="", ours="image_encoder.backbone."),
)


@dataclass(frozen=True, kw_only=True)
class PublicFormat:
    """A family of files.

    marks: prefixes of names; the first format in FORMATS with a match is the file's.
    expects: the student configuration that fits; for messages.
    old_boxes: files without a version come from mmdet3d < 1.0.
    displacements: its 4D models predict displacements in metres, not velocities.
    refusal: why it cannot be converted.
    """

    name: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    expects: str = ""
    old_boxes: bool = False
    displacements: bool = False
    refusal: str = ""

    def rule(self, name: str) -> Rule | None:
        """The first rule that matches a name."""
        return next((rule for rule in self.rules if rule.match(name)), None)


FORMATS = (
    PublicFormat(
        name="BEVDet 2.x and later, or DistillBEV's reproduction of Megvii's BEVDepth",
        marks=("img_view_transformer.depth_net.",),
        refusal="its BEV space is the vehicle's and not the LiDAR's, its images come with red and blue exchanged, and "
        "its depth net takes other camera parameters",
    ),
    PublicFormat(
        name="BEVDepth of BEVDet 0.x or DistillBEV",
        marks=("img_view_transformer.featnet.",),
        rules=SHARED + DEFORMABLE_DEPTH + UNUSED,
        expects="detector: {name: bevdepth or bevdepth4d, depth_net: dcn, image_neck_channels: 512}",
        old_boxes=True,
        displacements=True,
    ),
    PublicFormat(
        name="BEVDet of BEVDet 0.x",
        marks=("img_view_transformer.depthnet.",),
        rules=SHARED + PLAIN_DEPTH + UNUSED,
        expects="detector: {name: bevdet or bevdet4d, image_neck_channels: 512}",
        old_boxes=True,
        displacements=True,
    ),
    PublicFormat(
        name="torchvision network",
        marks=("layer4.", "features.", "trunk_output."),
        rules=TORCHVISION,
        expects="detector.image_backbone: that network's name",
    ),
)


KEY_FRAME_S = 0.5
"""Between nuScenes' key frames."""

_VELOCITY_OUTPUT = re.compile(r"^pts_bbox_head\.task_heads\.\d+\.vel\.\d+\.(?:weight|bias)$")


def to_velocities(weights: dict[str, Tensor], config: DetectorConfig) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Convert a 4D head of BEVDet 0.x, whose `vel` are displacements in metres between the two frames, to m/s.

    Its training multiplies velocities by the time between the frames and its evaluation divides by it
    (`speed_mode='abs_dis'`); with a fixed time between frames that is a factor on the last convolution.

    Returns:
        The weights, and the names of the tensors that changed.
    """
    seconds = KEY_FRAME_S * config.history_step
    changed = {name: value / seconds for name, value in weights.items() if _VELOCITY_OUTPUT.match(name)}
    return weights | changed, tuple(changed)


def format_of(names: Iterable[str], where: Path) -> PublicFormat:
    """The family that a state dict's names belong to.

    Raises:
        DataError: there is none, or its files cannot be converted.
    """
    names = tuple(names)
    for known in FORMATS:
        if not any(name.startswith(known.marks) for name in names):
            continue
        if known.refusal:
            raise DataError(
                f"this checkpoint cannot be converted exactly: {known.refusal}",
                where=where,
                got=known.name,
                expected=", ".join(other.name for other in FORMATS if not other.refusal),
                cure="Take a checkpoint of BEVDet 0.x or DistillBEV, or train from torchvision's weights",
            )
        return known
    parts = sorted({name.partition(".")[0] for name in names})
    raise DataError(
        "no known detector's checkpoint",
        where=where,
        got=f"{len(names)} tensors under {', '.join(parts[:6])}{', ...' if len(parts) > 6 else ''}",
        expected=", ".join(known.name for known in FORMATS if not known.refusal),
    )


def geometry_differences(weights: dict[str, Tensor], config: DetectorConfig) -> list[str]:
    """One line for each difference between the grid or depth bins of a BEVDet 0.x file and the configuration's."""
    prefix, grid = "img_view_transformer.", config.grid
    ranges = (grid.x_range_m, grid.y_range_m, config.z_range_m)
    sides = (*grid.cell_m, config.z_range_m[1] - config.z_range_m[0])
    expected = {
        "dx": torch.tensor(sides),
        "bx": torch.tensor([low + side / 2 for (low, _), side in zip(ranges, sides, strict=True)]),
        "nx": torch.tensor([*reversed(grid.shape), 1]),
        "frustum": torch.tensor(config.bin_depths_m),
    }
    meanings = {"dx": "cell size", "bx": "first cell's centre", "nx": "cells", "frustum": "depth bins (m)"}
    found = {name: weights[prefix + name] for name in expected if prefix + name in weights}
    if "frustum" in found:
        found["frustum"] = found["frustum"][:, 0, 0, 2]
    return [
        f"{meanings[name]}: the file's {_brief(value)}, the configuration's {_brief(expected[name])}"
        for name, value in found.items()
        if value.shape != expected[name].shape or not torch.allclose(value.float(), expected[name].float(), atol=1e-4)
    ]


def _brief(values: Tensor) -> str:
    numbers = [f"{value:g}" for value in values.tolist()]
    return ", ".join(numbers) if len(numbers) <= 3 else f"{numbers[0]}, {numbers[1]} .. {numbers[-1]} ({len(numbers)})"
