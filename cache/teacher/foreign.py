"""Recognise checkpoints of other frameworks by the names in them, and say what to do."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cache.errors import OfflineDistillError, TeacherError
from cache.teacher.state_dict import abridged

OWN_TEACHER = (
    "Wrap its network in the Teacher protocol and dump it with --teacher module:factory (docs/your-student.md)"
)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of checkpoint that is not mmdet3d's: the names that give it away, and the cure."""

    names: re.Pattern[str]
    what: str
    cure: str
    every: bool = False
    """Whether all names have to match, or one is enough."""


_KINDS = (
    _Kind(
        names=re.compile(r"model_state$|(vfe|backbone_3d|map_to_bev_module|backbone_2d|dense_head)\."),
        what="the checkpoint is OpenPCDet's, whose networks are not mmdet3d's",
        cure=OWN_TEACHER,
    ),
    _Kind(
        names=re.compile(r"reader\.|bbox_head\.tasks\."),
        what="the checkpoint is of det3d (tianweiy/CenterPoint), whose networks are not mmdet3d's",
        cure=OWN_TEACHER,
    ),
    _Kind(
        names=re.compile(r"(encoders\.(camera|lidar)|heads\.(object|map))\."),
        what="the checkpoint is of MIT's BEVFusion, whose networks are not mmdet3d's",
        cure="Take the LiDAR-only checkpoint of mmdet3d's projects/BEVFusion",
    ),
    _Kind(
        names=re.compile(r"pytorch-lightning_version$"),
        what="the checkpoint is Lightning's, not a LiDAR detector's",
        cure="Give the checkpoint of the LiDAR teacher; a student's goes to evaluate --checkpoint",
    ),
    _Kind(
        names=re.compile(r"model\."),
        what="the checkpoint is of a module that holds the detector as `model`",
        cure="Take the prefix off: torch.save({name.removeprefix('model.'): value for name, value in "
        "state_dict.items()}, 'detector.pth')",
        every=True,
    ),
    _Kind(
        names=re.compile(r"ema_"),
        what="the checkpoint holds a moving average alone, under mmcv's names that have lost their dots",
        cure="Take the checkpoint that mmcv wrote, which holds the detector's own names as well, and say --ema",
        every=True,
    ),
)


def require_own_kind(names: Iterable[str], where: Path, error: type[OfflineDistillError] = TeacherError) -> None:
    """Check that names of tensors, or of a file's parts, are not another framework's.

    Raises:
        error: they are; it says whose.
    """
    names = [str(name) for name in names]
    for kind in _KINDS:
        found = [name for name in names if kind.names.match(name)]
        if found and (len(found) == len(names) or not kind.every):
            raise error(kind.what, where=where, got=abridged(found), cure=kind.cure)
