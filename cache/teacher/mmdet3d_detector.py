"""Build mmdet3d detectors and check that they can teach."""

import copy
import logging
from typing import Any

from torch import nn

from cache.errors import TeacherError
from cache.spec import CLASSES, Decoding
from cache.teacher.foreign import OWN_TEACHER
from cache.teacher.mmdet3d_config import Config, mmdet3d_scope
from cache.teacher.mmdet3d_points import type_name, voxel_layer
from cache.teacher.mmdet3d_voxels import voxel_layer_of
from cache.teacher.sparse import run_in_one_thread, sparse_convolutions, spconv_extra

Detector = Any
"""An mmdet3d detector, an nn.Module whose parts are known at run time only."""


def build_detector(config: Config) -> Detector:
    """The detector of a configuration, checked to be fit for a teacher, without trained weights.

    Raises:
        TeacherError: it cannot be built, takes no points or images as well, has no BEV backbone, neck and head, knows a
            class that nuScenes does not, or needs sparse convolutions where there are none.
    """
    _require_points_alone(config)
    with mmdet3d_scope():
        from mmdet3d.registry import MODELS

        try:
            detector = MODELS.build(_own_copy(config))
        except Exception as error:  # The types that a configuration names run their own code.
            raise TeacherError(
                "the detector cannot be built", where=config.filename, got=f"{type(error).__name__}: {error}"
            ) from error
        _require_parts(detector, config.filename)
        _require_sparse(detector, config.filename)
    _require_classes(detector, config)
    if has_heatmap(detector):
        _set_prior(head_of(detector))
    for part in detector.children():
        if sparse_convolutions(part):
            run_in_one_thread(part)
    return detector


def _own_copy(config: Config) -> Any:
    """A configuration's model, of which MODELS.build takes `type` away, and BEVFusion its preprocessor's voxels."""
    model = copy.copy(config.model)
    return model | {key: copy.deepcopy(model[key]) for key in ("data_preprocessor",) if key in model}


def head_of(detector: Detector) -> Any:
    """The detector's 3D head, whichever of mmdet3d's names it has."""
    return getattr(detector, "pts_bbox_head", None) or getattr(detector, "bbox_head", None)


def has_heatmap(detector: Detector) -> bool:
    """Whether the head is a CenterHead: anchor heads and transformers have no heatmap of classes over the BEV."""
    from mmdet3d.models.dense_heads import CenterHead

    return isinstance(head_of(detector), CenterHead)


def tasks_of(detector: Detector, config: Config) -> tuple[tuple[str, ...], ...]:
    """The classes of each of the head's tasks; one task of all classes where the head is no CenterHead."""
    if has_heatmap(detector):
        return tuple(tuple(names) for names in head_of(detector).class_names)
    return (_config_classes(config),)


def initialise(detector: Detector) -> None:
    """Random weights, as the configuration asks for, but without the pretrained parts that it would download."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)  # At INFO it prints four lines for each parameter.
    for module in detector.modules():
        if _is_download(getattr(module, "init_cfg", None)):
            module.init_cfg = None
    detector.init_weights()
    logger.setLevel(level)


def decoding_of(detector: Detector) -> Decoding:
    """How mmdet3d's CenterHead turns its maps into boxes; the default for a head without heatmaps.

    Raises:
        TeacherError: the configuration does not say, or lacks a key or gives a value that mmdet3d would stumble over.
    """
    if not has_heatmap(detector):
        return Decoding()
    head = head_of(detector)
    test, coder = head.test_cfg, head.bbox_coder
    if test is None:
        raise TeacherError("the configuration does not say how boxes are decoded", expected="model.test_cfg.pts")
    # The coder filters by score and range, and rotated NMS by its own score as well.
    scores = [coder.score_threshold, test.get("score_threshold") if test.get("nms_type") == "rotate" else None]
    known = {key: test[key] for key in Decoding.model_fields if key in test} | {
        "score_threshold": max(score or 0.0 for score in scores),
        "max_per_frame": coder.max_num,
        "post_center_range": coder.post_center_range,
        "log_dimensions": head.norm_bbox,
    }
    return Decoding.parse(known, where="model.test_cfg.pts and pts_bbox_head.bbox_coder")


def _is_download(init: Any) -> bool:
    return any(one.get("type") == "Pretrained" for one in (init if isinstance(init, list) else [init or {}]))


def _set_prior(head: Any) -> None:
    """Start the heatmaps at the probability that `init_bias` is the logit of.

    mmdet3d means to, but mmengine looks for init_weights() only in a module's children and not inside a ModuleList, so
    its heatmaps start at 0.5 everywhere, and the loss in the thousands.
    """
    for task in head.task_heads:
        branch = task.heatmap if hasattr(task, "heatmap") else task.cls_head
        nn.init.constant_(branch[-1].bias, task.init_bias)


def _require_points_alone(config: Config) -> None:
    """Refuse fusion before a detector is built: BEVFusion's downloads the weights of its image branch meanwhile."""
    parts = [name for name, part in config.model.items() if hasattr(part, "get")]
    images = [name for name in parts if name.startswith("img_") or name in _FUSION]
    if images and voxel_layer(config.model):
        raise TeacherError(
            "the detector fuses images with points, and a dump as a LiDAR detector would leave them out",
            where=config.filename,
            got=f"{type_name(config.model)} with {', '.join(images)}",
            cure=f"Choose its LiDAR-only configuration. Or: {OWN_TEACHER}",
        )


_FUSION = ("view_transform", "vtransform", "fusion_layer", "pts_fusion_layer")
"""Parts of fusion detectors beside their image branch: cameras to BEV, and BEV with BEV."""


def _require_parts(detector: Detector, where: str) -> None:
    if voxel_layer_of(detector) is None:
        raise TeacherError(
            "the detector takes no voxels of LiDAR points",
            where=where,
            got=_described(detector),
            expected="a data_preprocessor with a voxel_layer, and pts_backbone, pts_neck and pts_bbox_head",
            cure="Choose a LiDAR detector: camera detectors and detectors on single points have no BEV voxels",
        )
    parts = [getattr(detector, name, None) for name in ("pts_middle_encoder", "pts_backbone", "pts_neck")]
    if None in (*parts, head_of(detector)):
        raise TeacherError(
            "the detector has no backbone, neck and head over a bird's-eye view of its own",
            where=where,
            got=_described(detector),
            expected="pts_middle_encoder, pts_backbone, pts_neck and pts_bbox_head (or bbox_head)",
            cure="Choose a CenterPoint, PointPillars, SSN or LiDAR-only BEVFusion configuration of nuScenes",
        )


def _described(detector: Detector) -> str:
    parts = ", ".join(f"{name}: {type(part).__name__}" for name, part in detector.named_children())
    return f"{type(detector).__name__} with {parts}"


def _require_classes(detector: Detector, config: Config) -> None:
    classes = [name for task in tasks_of(detector, config) for name in task]
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes or len(set(classes)) < len(classes):
        raise TeacherError(
            "the teacher knows classes that nuScenes' detection task does not",
            where=config.filename,
            got=", ".join(unknown or classes) or "no class names",
            expected=f"some of {', '.join(CLASSES)}, each once",
        )


def _config_classes(config: Config) -> tuple[str, ...]:
    """The classes of a configuration's data set, in the order of its labels."""
    dataset = config.get("test_dataloader", {}).get("dataset", {})
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return tuple(dataset.get("metainfo", {}).get("classes") or config.get("class_names") or ())


def _require_sparse(detector: Detector, where: str) -> None:
    """Sparse convolutions come with spconv, or with an mmcv that was built with CUDA."""
    from mmcv.ops import get_compiling_cuda_version
    from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE

    if sparse_convolutions(detector) and not IS_SPCONV2_AVAILABLE and get_compiling_cuda_version() == "not available":
        raise TeacherError(
            "the detector needs sparse convolutions and spconv is not installed",
            where=where,
            got=f"pts_middle_encoder: {type(detector.pts_middle_encoder).__name__}",
            cure=f"Run `make setup WITH=voxel` for the CPU, or `make setup WITH={spconv_extra()}` for a GPU and this "
            "torch; or take a pillar configuration",
        )
